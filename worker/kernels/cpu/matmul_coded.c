/* Matrices of bfloat16 whose exponents are coded, coded.h: the products of matmul_panels.c, to the same bits.

   For few rows numbers are decoded in registers, between memory, which limits, and the product. For more, some units are decoded
   into memory that stays in L2, and multiplied there. */

#include "coded.h"
#include "tiles.h"

#if BF16_PAIRS

#define FEW 16          /* rows that are multiplied as numbers are decoded */
#define BLOCK 512       /* units that are decoded at once for more: 64 kB */
#define MOST_TILES 64   /* of x per chunk: its sums are 98 kB */
#define AHEAD 1024      /* bytes of exponents, and twice as many of the rest, that are called ahead */

/* The next pair of units of a block with this head, whose codes stand for `of`. */
INLINE void decode_pair(Coded *from, uint16_t head, __m512i of, __m512i z[4]) {
    if (head == BYTES)
        tern_decode_bytes(from, z);
    else
        tern_decode(from, of, z);
}

/* Calls for a block some blocks ahead: into L1, where the sums of several rows would wait for L2; for one row memory is what
   limits, and L2 holds more lines that are on their way. */
INLINE void call_ahead(const Coded *at, const int rows) {
    for (int pair = 0; pair < UNITS_OF_BLOCK / 2; pair++) {
        const char *rest = at->rest + 128 * pair + 2 * AHEAD, *exponents = at->exponents + 64 * pair + AHEAD;
        if (rows == 1)
            __builtin_prefetch(rest, 0, 2), __builtin_prefetch(rest + 64, 0, 2), __builtin_prefetch(exponents, 0, 2);
        else
            __builtin_prefetch(rest, 0, 3), __builtin_prefetch(rest + 64, 0, 3), __builtin_prefetch(exponents, 0, 3);
    }
}

/* ── few rows ─────────────────────────────────────────────────────────────────────────────────── */

/* Vectors first … last - 1 of a unit times a unit of all rows. */
INLINE void add_unit(const int rows, const int first, const int last, __m512 acc[][2], const __m512i *z, const uint32_t *x) {
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
        if (last - first == 1)
            __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc[i][first]) : "v"(z[first]), "m"(x[i]));
        else {
            __m512i all = _mm512_set1_epi32((int)x[i]);
            _Pragma("GCC unroll 2") for (int v = first; v < last; v++)
                __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc[i][v]) : "v"(all), "v"(z[v]));
        }
}

/* Rows of W in vectors first … last - 1 of a panel's two. */
INLINE void rows_of_panel(const int rows, const int first, const int last, Coded from, long blocks, const uint32_t *x,
                          float (*sums)[PANEL]) {
    __m512 acc[FEW][2];
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int v = first; v < last; v++) acc[i][v] = _mm512_setzero_ps();
    for (long b = 0; b < blocks; b++) {
        uint16_t head = *from.head++;
        __m512i of = tern_exponents_of(head);
        call_ahead(&from, rows);
        for (int pair = 0; pair < UNITS_OF_BLOCK / 2; pair++, x += 2 * rows) {
            __m512i z[4];
            decode_pair(&from, head, of, z);
            add_unit(rows, first, last, acc, z, x);
            add_unit(rows, first, last, acc, z + 2, x + rows);
        }
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int v = first; v < last; v++) _mm512_storeu_ps(sums[i] + 16 * v, acc[i][v]);
}

#define WHOLE(N) case N: rows_of_panel(N, 0, 2, from, blocks, x, sums); break;
#define BY_HALVES(N) /* sums of so many rows do not fit the registers at once */ \
    case N: rows_of_panel(N, 0, 1, from, blocks, x, sums), rows_of_panel(N, 1, 2, from, blocks, x, sums); break;

static void multiply_few(int rows, Coded from, long blocks, const uint32_t *x, float (*sums)[PANEL]) {
    switch (rows) {
        WHOLE(1) WHOLE(2) WHOLE(3) WHOLE(4) WHOLE(5) WHOLE(6) WHOLE(7) WHOLE(8) WHOLE(9) WHOLE(10) WHOLE(11) WHOLE(12)
        BY_HALVES(13) BY_HALVES(14) BY_HALVES(15) BY_HALVES(16)
    }
}

/* ── more ─────────────────────────────────────────────────────────────────────────────────────── */

static void decode(Coded *from, long units, __m512i *to) {
    for (; units > 0; units -= UNITS_OF_BLOCK) {
        uint16_t head = *from->head++;
        __m512i of = tern_exponents_of(head);
        for (int pair = 0; pair < UNITS_OF_BLOCK / 2; pair++, to += 4) {
            __m512i z[4];
            decode_pair(from, head, of, z);
            for (int v = 0; v < 4; v++) _mm512_store_si512(to + v, z[v]);
        }
    }
}

typedef struct {
    const Matrix *w;
    const Call *call;
    Tile tile;
    Tiles x;
} Product;

static void multiply_decoded(const Product *p, long tile0, long tiles, Coded from, float (*sums)[PANEL]) {
    _Alignas(64) __m512i numbers[BLOCK * 2];
    long m0 = tern_first_row(&p->x, tile0), units = tern_units(p->w), block = BLOCK;
    for (long u = 0; u < units; u += block) {
        long some = units - u < block ? units - u : block;
        decode(&from, some, numbers);
        for (long t = 0; t < tiles; t++) {
            long m = tern_first_row(&p->x, tile0 + t), count = tern_first_row(&p->x, tile0 + t + 1) - m;
            /* Two tiles call for what is decoded next. */
            const char *ahead = t == 0 ? from.rest : from.exponents;
            p->tile((int)count, 1, numbers, 0, p->x.units + m * p->x.columns + u * count, some, ahead, t == 0 ? 64 : t == 1 ? 32 : 0,
                    sums[m - m0], u == 0);
        }
    }
}

static void multiply(const void *product, long tile0, long tiles, long begin, long end) {
    const Product *p = product;
    long m0 = tern_first_row(&p->x, tile0), rows = tern_first_row(&p->x, tile0 + tiles) - m0;
    _Alignas(64) float sums[MOST_TILES * PANEL_ROWS][PANEL];
    for (long n = begin; n < end; n += PANEL) {
        Coded from = tern_coded_panel(p->w, n / PANEL);
        if (p->x.rows <= FEW)
            multiply_few((int)rows, from, tern_coded_blocks(p->w), p->x.units + m0 * p->x.columns, sums);
        else
            multiply_decoded(p, tile0, tiles, from, sums);
        tern_finish(p->w, p->call, m0, rows, n, end - n < PANEL ? end - n : PANEL, sums[0], PANEL);
    }
}

void tern_matmul_coded(const Matrix *w, const Call *call) {
    Product p = {w, call, tern_panel_tile(BF16), tern_tiles_of_rows(call, w->k, 1, call->m <= FEW ? FEW : PANEL_ROWS)};
    tern_multiply_blocks(multiply, &p, p.x.count, MOST_TILES, w->n, PANEL, PANEL);
}

#else

void tern_matmul_coded(const Matrix *w, const Call *call) { tern_matmul_panels(w, call); } /* nothing is coded here */

#endif
