/* Matrices whose weights are converted when they are multiplied: int8 with x as it is, fp8, nf4.

       y[m][n] = sum_g scale[n][g] · sum_{k in g} value(code[n][k]) · x[m][k]

   Some units of a panel are converted into memory that stays in L1, and multiplied there as matmul_panels.c does: by bf16
   where x is that and its pairs can be multiplied, else in float32. Scales are multiplied in, in float32, when a group of
   columns is summed up. */

#include "convert.h"
#include "tiles.h"

#define BLOCK 128     /* units of the converted panel: 16 kB, or half of them, which suits few rows, as they are read once */
#define MOST_TILES 32 /* of x per chunk: its sums are 49 kB, twice */

typedef struct {
    const Matrix *w;
    const Call *call;
    Convert convert;
    Tile tile;
    Tiles x;
    int pairs;
} Product;

/* Scales of the rows of a panel that begins with n. */
static void scales_of(const Matrix *w, long n, long group, float *scales) {
    for (long r = 0; r < PANEL; r++) {
        long own;
        const Part *part = tern_part_of(w, n + r, &own);
        scales[r] = ((const float *)part->scales)[own / part->scale_rows * part->scale_stride + group];
    }
}

static void multiply(const void *product, long tile0, long tiles, long begin, long end) {
    const Product *p = product;
    const Matrix *w = p->w;
    long m0 = tern_first_row(&p->x, tile0), rows = tern_first_row(&p->x, tile0 + tiles) - m0;
    long stored = tern_unit_numbers(w->kind), made = p->pairs ? 2 : 1; /* columns of a unit */
    long block = (tiles == 1 ? BLOCK / 2 : BLOCK) * made;
    _Alignas(64) uint32_t weights[(BLOCK + 8) * PANEL];
    _Alignas(64) float sums[MOST_TILES * PANEL_ROWS][PANEL], of_group[MOST_TILES * PANEL_ROWS][PANEL];
    for (long n = begin; n < end; n += PANEL) {
        const uint32_t *panel = (const uint32_t *)((const char *)w->panels + n / PANEL * tern_panel_bytes(w));
        for (long k = 0, group = 0; k < w->k; k += w->group, group++) {
            long last = k + w->group < w->k ? k + w->group : w->k;
            for (long at = k; at < last; at += block) {
                long some = last - at < block ? last - at : block;
                p->convert(panel + at / stored * PANEL, (some + stored - 1) / stored, p->pairs, weights);
                for (long t = 0; t < tiles; t++) {
                    long m = tern_first_row(&p->x, tile0 + t), count = tern_first_row(&p->x, tile0 + t + 1) - m;
                    const uint32_t *x = p->x.units + m * p->x.columns + at / made * count;
                    p->tile((int)count, 1, weights, 0, x, (some + made - 1) / made, (const char *)weights, 0, of_group[m - m0], at == k);
                }
            }
            float scales[PANEL];
            scales_of(w, n, group, scales);
            for (long m = 0; m < rows; m++)
                for (int r = 0; r < PANEL; r++) {
                    float scaled = of_group[m][r] * scales[r];
                    sums[m][r] = group ? sums[m][r] + scaled : scaled;
                }
        }
        tern_finish(w, p->call, m0, rows, n, end - n < PANEL ? end - n : PANEL, sums[0], PANEL);
    }
}

void tern_matmul_converted(const Matrix *w, const Call *call) {
    Product p = {.w = w, .call = call, .convert = tern_converter(w->kind), .pairs = call->x_type == BF16 && BF16_PAIRS};
    p.tile = tern_panel_tile(p.pairs ? BF16 : F32);
    p.x = tern_tiles_of_rows(call, w->k, p.pairs, PANEL_ROWS);
    tern_multiply_blocks(multiply, &p, w, call->next, p.x.count, MOST_TILES);
}
