/* Matrices that are multiplied as they are stored (f32, f16, bf16, int8), from the panels of panels.h.

       y[m][n] = sum_k w[n][k] · x[m][k]     in float32, unit after unit, a pair of bf16 at once
       y[m][n] = sum_k w[n][k] · code[m][k] · w_scale[n] · x_scale[m]     int8: sums are exact integers

   A tile is MR rows of x by one panel: a unit of each row of x meets those of all rows of the panel. Units of x are as
   those of W, but for single numbers: these are float32. BLOCK units of a panel stay in L2 while the rows of x pass;
   sums wait in memory meanwhile, so their order, and an output's bits, do not depend on the tile. */

#include "activations.h"
#include "panels.h"
#include "tiles.h"

#define MR PANEL_ROWS
#define BLOCK 512         /* units */
#define MOST_TILES 64     /* of x per chunk: its sums are 98 kB */
#define AHEAD (8 << 10)   /* bytes of weights, called into L2 */

/* ── tiles ────────────────────────────────────────────────────────────────────────────────────── */

INLINE vf vf_from(const void *sums, int first) { return first ? (vf){} : load(sums); }
INLINE ints ints_from(const void *sums, int first) {
    if (first) return ints_set(0);
    ints before;
    memcpy(&before, sums, sizeof before);
    return before;
}

/* A Tile of panels.h. */
#define TILE(NAME, WEIGHT, SUMS, LANES_OF, UNIT, LOAD, SPLAT, DOT)                                                    \
    INLINE void NAME(const int rows, const int panels, const WEIGHT *w, long next, const uint32_t *x, long units,     \
                     const char *ahead, long step, int32_t *to, int first) {                                          \
        enum { VECTORS = PANEL / LANES_OF };                                                                          \
        SUMS acc[MR][2 * VECTORS];                                                                                    \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)                                                       \
            _Pragma("GCC unroll 8") for (int v = 0; v < panels * VECTORS; v++)                                        \
                acc[i][v] = SUMS##_from(to + (i + v / VECTORS * rows) * PANEL + v % VECTORS * LANES_OF, first);       \
        for (long u = 0; u < units; u++, w += PANEL, x += rows, ahead += step) {                                      \
            if (panels == 1) __builtin_prefetch(ahead, 0, 2);                                                         \
            if (panels == 1 && step > 64) __builtin_prefetch(ahead + 64, 0, 2);                                       \
            UNIT b[2 * VECTORS];                                                                                      \
            _Pragma("GCC unroll 8") for (int v = 0; v < panels * VECTORS; v++) {                                      \
                b[v] = LOAD(w + v / VECTORS * next + v % VECTORS * LANES_OF);                                         \
                KEEP(b[v]);                                                                                           \
            }                                                                                                         \
            _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {                                                 \
                UNIT a = SPLAT(x + i);                                                                                \
                _Pragma("GCC unroll 8") for (int v = 0; v < panels * VECTORS; v++)                                    \
                    acc[i][v] = DOT(acc[i][v], b[v], a);                                                              \
            }                                                                                                         \
        }                                                                                                             \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)                                                       \
            _Pragma("GCC unroll 8") for (int v = 0; v < panels * VECTORS; v++)                                        \
                memcpy(to + (i + v / VECTORS * rows) * PANEL + v % VECTORS * LANES_OF, &acc[i][v], sizeof(SUMS));     \
    }                                                                                                                 \
    static void NAME##_rows(int rows, int panels, const void *w, long next, const uint32_t *x, long units,            \
                            const char *ahead, long step, void *sums, int first) {                                    \
        switch (panels * 16 + rows) {                                                                                 \
            CASES(NAME)                                                                                               \
        }                                                                                                             \
    }
/* Up to FEW rows take two panels at once: what is called ahead by the processor itself then suffices. */
#define CASE(NAME, P, N) case P * 16 + N: NAME(N, P, w, next, x, units, ahead, step, sums, first); break;
#define CASES_OF_6(NAME)                                                                                              \
    CASE(NAME, 2, 1) CASE(NAME, 2, 2) CASE(NAME, 2, 3) CASE(NAME, 1, 1) CASE(NAME, 1, 2) CASE(NAME, 1, 3)             \
    CASE(NAME, 1, 4) CASE(NAME, 1, 5) CASE(NAME, 1, 6)
#if MR == 12
#define FEW 4
#define CASES(NAME)                                                                                                   \
    CASES_OF_6(NAME) CASE(NAME, 2, 4) CASE(NAME, 1, 7) CASE(NAME, 1, 8) CASE(NAME, 1, 9) CASE(NAME, 1, 10)            \
    CASE(NAME, 1, 11) CASE(NAME, 1, 12)
#else
#define FEW 3
#define CASES CASES_OF_6
#endif

INLINE vf splat_f32(const uint32_t *unit) {
#if defined(TERN_AVX512)
    vf all;
    __asm__("vbroadcastss %1, %0" : "=v"(all) : "m"(*unit));
    return all;
#else
    return splat(bits_to_float(*unit));
#endif
}

/* Products are instructions as they stand: with so many sums GCC 12 copies and spills them around its intrinsics. */
INLINE vf dot_f32(vf sum, vf w, vf x) {
#if defined(TERN_AVX512)
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
#else
    return fma_(x, w, sum);
#endif
}

TILE(tile_f32, float, vf, LANES, vf, load_f32, splat_f32, dot_f32)
TILE(tile_f16, f16, vf, LANES, vf, load_f16, splat_f32, dot_f32)
#if BF16_PAIRS
INLINE vf load_pairs(const uint32_t *p) { return load((const float *)p); }
INLINE vf dot_pairs(vf sum, vf w, vf x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}
TILE(tile_bf16, uint32_t, vf, LANES, vf, load_pairs, splat_f32, dot_pairs)
#else
TILE(tile_bf16, bf16, vf, LANES, vf, load_bf16, splat_f32, dot_f32)
#endif
TILE(tile_int8, uint32_t, ints, 16, bytes, bytes_load, bytes_repeat, dot_w8)

Tile tern_panel_tile(int kind) {
    return kind == INT8 ? tile_int8_rows : kind == BF16 ? tile_bf16_rows : kind == F16 ? tile_f16_rows : tile_f32_rows;
}

/* ── a product ────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const Matrix *w;
    const Call *call;
    Tile tile;
    Activations codes; /* of x, for int8 */
    Tiles x;
    long units, unit_bytes;
} Product;

/* Integer sums become floats, where they are. */
static void scale_sums(const Product *p, long m0, long rows, long n, float (*sums)[PANEL]) {
    float scales[PANEL];
    for (long j = 0; j < PANEL; j++) {
        long own;
        const Part *part = tern_part_of(p->w, n + j, &own);
        scales[j] = ((const float *)part->scales)[own];
    }
    for (long m = 0; m < rows; m++) {
        float *row = sums[m];
        for (long j = 0; j < PANEL; j++) {
            int32_t sum;
            memcpy(&sum, row + j, sizeof sum);
            row[j] = (float)(sum + p->codes.moved[m0 + m]) * scales[j] * p->codes.scales[m0 + m];
        }
    }
}

static void multiply(const void *product, long tile0, long tiles, long begin, long end) {
    const Product *p = product;
    const Matrix *w = p->w;
    long m0 = tern_first_row(&p->x, tile0), rows = tern_first_row(&p->x, tile0 + tiles) - m0;
    long unit = PANEL * p->unit_bytes, lines = unit / 64 ? unit / 64 : 1, next = p->units * PANEL;
    _Alignas(64) float sums[MOST_TILES * MR][PANEL];
    for (long n = begin, panels; n < end; n += panels * PANEL) {
        const char *panel = (const char *)w->panels + n / PANEL * p->units * unit;
        panels = rows <= FEW && n + PANEL < end ? 2 : 1;
        for (long u = 0; u < p->units; u += BLOCK) {
            long some = p->units - u < BLOCK ? p->units - u : BLOCK;
            const char *block = panel + u * unit;
            for (long t = 0; t < tiles; t++) {
                long m = tern_first_row(&p->x, tile0 + t), count = tern_first_row(&p->x, tile0 + t + 1) - m;
                /* One tile asks for what it will read itself soon; several, in turn, for the block that follows. */
                const char *ahead = tiles == 1 ? block + AHEAD : block + some * unit + t * some * 64;
                long step = tiles == 1 ? unit : t < lines ? unit / lines : 0;
                p->tile((int)count, (int)panels, block, next, p->x.units + m * p->x.columns + u * count, some, ahead, step,
                        sums[m - m0], u == 0);
            }
        }
        for (long i = 0; i < panels; i++) {
            long at = n + i * PANEL;
            if (w->kind == INT8) scale_sums(p, m0, rows, at, sums + i * rows);
            tern_finish(w, p->call, m0, rows, at, end - at < PANEL ? end - at : PANEL, sums[i * rows], PANEL);
        }
    }
}

void tern_matmul_panels(const Matrix *w, const Call *call) {
    Product p = {.w = w, .call = call, .tile = tern_panel_tile(w->kind)};
    p.units = tern_units(w), p.unit_bytes = tern_unit_bytes(w->kind);
    if (w->kind == INT8) {
        p.codes = tern_quantize_rows(call, w->k, w->k, W8_MOVED);
        p.x = tern_tiles_of_codes(&p.codes, call->m, MR);
    } else {
        p.x = tern_tiles_of_rows(call, w->k, w->kind == BF16 && BF16_PAIRS, MR);
    }
    tern_multiply_blocks(multiply, &p, w, call->next, p.x.count, MOST_TILES);
}
