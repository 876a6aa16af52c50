/* int8 weights [n, K] as they lie, int8 activations with one scale per row: sums are exact integers.

       y[m][n] = sum_k w[n][k] · code[m][k] · w_scale[n] · x_scale[m]

   Few rows of x: both operands are read along K, 64 columns at once, in tiles of some rows of x by NR rows
   of W. Many, where there is VNNI: K_BLOCK columns of a panel of 2 · 16 rows of W are packed,

       [16 rows of W][4 columns][row][column]     64 bytes per 4 columns, which stay in L2

   and multiplied by 4 columns of a row of x in all lanes, so that no sum has to be gathered from the lanes of
   a vector and a tile reads little for what it computes. Meanwhile the next weights are prefetched. */

#include "activations.h"
#include "pool.h"
#include "simd_int.h"
#if W8_MOVED
#include "transpose.h"
#endif

#define NR 4
#define MR 5
#define MOST_ROWS 96
#define MOST_COLUMNS 128
#define X_BYTES (384 << 10)
#define W_BYTES (48 << 10)

#if W8_MOVED
#define PANEL 32
#define PANEL_MR 12
#define K_BLOCK 1024
#define MOST_PANEL_ROWS 768
#define MANY 16 /* rows of x: packing costs about as much as five of them */
#endif

typedef struct {
    const Matrix *w;
    const Call *call;
    Activations x;
} Product;

/* Sums become floats, where they are. */
INLINE void scale_sums(int32_t *sums, long count, int32_t moved, const float *scales, float scale) {
    for (long j = 0; j < count; j++) {
        float y = (float)(sums[j] + moved) * scales[j] * scale;
        memcpy(sums + j, &y, sizeof y);
    }
}

INLINE void tile(const int rows, const int8_t *const w[NR], const Activations *x, long m, long k, Ahead ahead,
                 int32_t *sums, long stride) {
    const int8_t *codes = x->codes + m * x->stride;
    ints acc[MR][NR];
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = ints_set(0);
    long whole = k / 64 * 64;
    for (long at = 0; at < whole; at += 64) {
        bytes b[NR];
        _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) {
            if (ahead.lines & 1 << j) __builtin_prefetch(ahead.from + NR * at + j * 64, 0, 2);
            b[j] = weights8(bytes_load(w[j] + at));
        }
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {
            bytes a = bytes_load(codes + i * x->stride + at);
            KEEP(a);
            _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = dot_w8(acc[i][j], b[j], a);
        }
    }
    if (whole < k) {
        _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) {
            int8_t last[64] = {0};
            memcpy(last, w[j] + whole, k - whole);
            bytes b = weights8(bytes_load(last));
            _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
                acc[i][j] = dot_w8(acc[i][j], b, bytes_load(codes + i * x->stride + whole));
        }
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {
        i32x4 four = ints_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]) + x->moved[m + i];
        memcpy(sums + i * stride, &four, sizeof four);
    }
}

static void some_rows(int rows, const int8_t *const w[NR], const Activations *x, long m, long k, Ahead ahead,
                      int32_t *sums, long stride) {
    switch (rows) {
    case 1: tile(1, w, x, m, k, ahead, sums, stride); break;
    case 2: tile(2, w, x, m, k, ahead, sums, stride); break;
    case 3: tile(3, w, x, m, k, ahead, sums, stride); break;
    case 4: tile(4, w, x, m, k, ahead, sums, stride); break;
    case 5: tile(5, w, x, m, k, ahead, sums, stride); break;
    }
}

#if W8_MOVED

/* k columns of 16 rows. Behind the last column is a weight of 0, moved. */
static void pack(const int8_t *const w[16], long at, long k, uint8_t *to) {
    for (long c = 0; c < k; c += 64) {
        bytes rows[16];
        __mmask64 some = k - c >= 64 ? ~0ull : (1ull << (k - c)) - 1;
        _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++)
            rows[r] = weights8(_mm512_maskz_loadu_epi8(some, w[r] + at + c));
        transpose16(rows);
        _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++) _mm512_store_si512(to + c * 16 + r * 64, rows[r]);
    }
}

/* `next`: 16 rows of weights that will be packed next. */
INLINE void panel_tile(const int rows, const uint8_t *panel, const int8_t *codes, long x_stride, long k,
                       const int8_t *const *next, long next_at, int32_t *sums, long stride, int first) {
    ints acc[PANEL_MR][2];
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int b = 0; b < 2; b++)
            acc[i][b] = first ? ints_set(0) : bytes_load(sums + i * stride + 16 * b);
    const int8_t *x[PANEL_MR / 3]; /* every third row: what an address can hold */
    for (int i = 0; i < PANEL_MR / 3; i++) x[i] = codes + 3 * i * x_stride;
    for (long at = 0; at < k; at += 4) {
        _Pragma("GCC unroll 4") for (int i = 0; i < PANEL_MR / 3; i++) __asm__("" : "+r"(x[i]));
        if (next) __builtin_prefetch(next[at / 64] + next_at + at % 64 * 16, 0, 2);
        bytes b0 = bytes_load(panel + at * 16), b1 = bytes_load(panel + 16 * K_BLOCK + at * 16);
        KEEP(b0);
        KEEP(b1);
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {
            bytes a = bytes_repeat(x[i / 3] + i % 3 * x_stride);
            acc[i][0] = dot_w8(acc[i][0], b0, a);
            acc[i][1] = dot_w8(acc[i][1], b1, a);
        }
        _Pragma("GCC unroll 4") for (int i = 0; i < PANEL_MR / 3; i++) x[i] += 4;
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int b = 0; b < 2; b++)
            memcpy(sums + i * stride + 16 * b, &acc[i][b], sizeof acc[i][b]);
}

static void panel_rows(int rows, const uint8_t *panel, const int8_t *codes, long x_stride, long k,
                       const int8_t *const *next, long next_at, int32_t *sums, long stride, int first) {
#define ROWS(N) case N: panel_tile(N, panel, codes, x_stride, k, next, next_at, sums, stride, first); break;
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
#undef ROWS
}

static void panel_weights(const Matrix *w, long n, const int8_t *weights[PANEL]) {
    for (int r = 0; r < PANEL; r++) {
        long row;
        const Part *part = tern_part_of(w, n + r, &row);
        weights[r] = (const int8_t *)part->weight + row * part->stride;
    }
}

static void multiply_panels(const void *product, long m0, long rows, long first, long last) {
    const Product *p = product;
    const Matrix *w = p->w;
    long tiles = (rows + PANEL_MR - 1) / PANEL_MR;
    _Alignas(64) uint8_t panel[PANEL * K_BLOCK];
    _Alignas(64) int32_t sums[MOST_PANEL_ROWS][PANEL];
    const int8_t *weights[2][PANEL]; /* of this panel, and of the next */
    panel_weights(w, first, weights[0]);
    for (long n = first; n < last; n += PANEL) {
        panel_weights(w, n + PANEL, weights[1]);
        for (long k = 0; k < w->k; k += K_BLOCK) {
            long block = w->k - k < K_BLOCK ? w->k - k : K_BLOCK, next = k + K_BLOCK < w->k ? k + K_BLOCK : 0;
            pack(weights[0], k, block, panel);
            pack(weights[0] + 16, k, block, panel + 16 * K_BLOCK);
            for (long t = 0, m = 0; t < tiles; t++) {
                int some = (int)((rows - m + tiles - t - 1) / (tiles - t));
                const int8_t *const *ahead = t < 2 ? weights[!next] + 16 * t : NULL;
                panel_rows(some, panel, p->x.codes + (m0 + m) * p->x.stride + k, p->x.stride, block, ahead, next,
                           sums[m], PANEL, k == 0);
                m += some;
            }
        }
        memcpy(weights[0], weights[1], sizeof weights[0]);
        long columns = last - n < PANEL ? last - n : PANEL;
        float scales[PANEL];
        for (long j = 0; j < PANEL; j++) {
            long row;
            const Part *part = tern_part_of(w, n + j, &row);
            scales[j] = ((const float *)part->scales)[row];
        }
        for (long m = 0; m < rows; m++) scale_sums(sums[m], PANEL, p->x.moved[m0 + m], scales, p->x.scales[m0 + m]);
        tern_finish(w, p->call, m0, rows, n, columns, (const float *)sums, PANEL);
    }
}

#endif

/* Some columns of a block, whose last is `end`. */
static void multiply(const Product *p, long m0, long rows, long n0, long columns, long end) {
    const Matrix *w = p->w;
    long tiles = (rows + MR - 1) / MR;
    int32_t sums[MOST_ROWS][MOST_COLUMNS + NR];
    float scales[MOST_COLUMNS + NR];
    for (long j = 0; j < columns; j += NR) {
        const int8_t *weights[NR];
        for (int r = 0; r < NR; r++) {
            long row;
            const Part *part = tern_part_of(w, n0 + j + r, &row);
            weights[r] = (const int8_t *)part->weight + row * part->stride;
            scales[j + r] = ((const float *)part->scales)[row];
        }
        const char *from = (const char *)weights[0] + NR * w->k;
        for (long t = 0, m = 0; t < tiles; t++) {
            int some = (int)((rows - m + tiles - t - 1) / (tiles - t));
            Ahead ahead = {from, n0 + j + NR < end ? tern_lines_of(t, tiles, NR) : 0};
            some_rows(some, weights, &p->x, m0 + m, w->k, ahead, &sums[m][j], MOST_COLUMNS + NR);
            m += some;
        }
    }
    for (long m = 0; m < rows; m++) scale_sums(sums[m], columns, 0, scales, p->x.scales[m0 + m]);
    tern_finish(w, p->call, m0, rows, n0, columns, (const float *)sums, MOST_COLUMNS + NR);
}

static void multiply_columns(const void *product, long m0, long rows, long first, long end) {
    for (long n0 = first; n0 < end; n0 += MOST_COLUMNS)
        multiply(product, m0, rows, n0, end - n0 < MOST_COLUMNS ? end - n0 : MOST_COLUMNS, end);
}

void tern_matmul_int8(const Matrix *w, const Call *call) {
    Product p = {w, call, tern_quantize_rows(call, w->k, w->k, W8_MOVED)};
#if W8_MOVED
    if (call->m >= MANY) {
        tern_multiply_blocks(multiply_panels, &p, call->m, MOST_PANEL_ROWS, w->n, PANEL, 2 * PANEL);
        return;
    }
#endif
    long rows = tern_clamp(X_BYTES / p.x.stride / MR * MR, MR, MOST_ROWS);
    tern_multiply_blocks(multiply_columns, &p, call->m, rows, w->n, NR, W_BYTES / w->k);
}
