/* Matrices of bfloat16 whose exponents are coded, coded.h: the products of matmul_panels.c, to the same bits.

   Few tiles of x decode numbers in registers, each anew: for one memory is what limits, and the others decode between their
   products. Many have some units decoded into memory that stays in L2. */

#include "coded.h"
#include "tiles.h"

#if BF16_PAIRS

#define FEW_TILES 4   /* 48 rows */
#define BLOCK 512     /* units that are decoded at once for more: 64 kB */
#define MOST_TILES 64 /* of x per chunk: its sums are 98 kB */
#define AHEAD 1024    /* bytes of exponents, and twice as many of the rest, that are called ahead */

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

/* ── few tiles ────────────────────────────────────────────────────────────────────────────────── */

/* Half of a pair of units times a unit of all rows. */
INLINE void add_unit(const int rows, __m512 acc[][2], const __m512i *z, const uint32_t *x) {
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {
        __m512i all = _mm512_set1_epi32((int)x[i]);
        _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
            __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc[i][v]) : "v"(all), "v"(z[v]));
    }
}

INLINE void tile(const int rows, Coded from, long blocks, const uint32_t *x, float (*sums)[PANEL]) {
    __m512 acc[PANEL_ROWS][2];
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    for (long b = 0; b < blocks; b++) {
        uint16_t head = *from.head++;
        __m512i of = tern_exponents_of(head);
        call_ahead(&from, rows);
        for (int pair = 0; pair < UNITS_OF_BLOCK / 2; pair++, x += 2 * rows) {
            __m512i z[4];
            decode_pair(&from, head, of, z);
            add_unit(rows, acc, z, x);
            add_unit(rows, acc, z + 2, x + rows);
        }
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++) _mm512_storeu_ps(sums[i] + 16 * v, acc[i][v]);
}

static void multiply_tile(int rows, Coded from, long blocks, const uint32_t *x, float (*sums)[PANEL]) {
#define ROWS(N) case N: tile(N, from, blocks, x, sums); break;
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
}

/* ── many ─────────────────────────────────────────────────────────────────────────────────────── */

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
    long m0 = tern_first_row(&p->x, tile0), units = tern_units(p->w);
    for (long u = 0; u < units; u += BLOCK) {
        long some = units - u < BLOCK ? units - u : BLOCK;
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
        if (p->x.count > FEW_TILES)
            multiply_decoded(p, tile0, tiles, from, sums);
        else
            for (long t = 0; t < tiles; t++) {
                long m = tern_first_row(&p->x, tile0 + t), count = tern_first_row(&p->x, tile0 + t + 1) - m;
                multiply_tile((int)count, from, tern_coded_blocks(p->w), p->x.units + m * p->x.columns, sums + m - m0);
            }
        tern_finish(p->w, p->call, m0, rows, n, end - n < PANEL ? end - n : PANEL, sums[0], PANEL);
    }
}

void tern_matmul_coded(const Matrix *w, const Call *call) {
    Product p = {w, call, tern_panel_tile(BF16), tern_tiles_of_rows(call, w->k, 1, PANEL_ROWS)};
    tern_multiply_blocks(multiply, &p, w, call->next, p.x.count, MOST_TILES);
}

#else

void tern_matmul_coded(const Matrix *w, const Call *call) { tern_matmul_panels(w, call); } /* nothing is coded here */

#endif
