/* int8 weights [n, K] as they lie, int8 activations with one scale per row: sums are exact integers.

       y[m][n] = sum_k w[n][k] · code[m][k] · w_scale[n] · x_scale[m]

   Both operands are read along K, 64 columns at once, in tiles of some rows of x by NR rows of W. */

#include "activations.h"
#include "pool.h"
#include "simd_int.h"

#define NR 4
#define MR 5
#define PREFETCH_BYTES 8192
#define MOST_ROWS 80
#define MOST_COLUMNS 128
#define X_BYTES (384 << 10)
#define W_BYTES (128 << 10)

typedef struct {
    const Matrix *w;
    const Call *call;
    Activations x;
    long rows, columns, row_chunks;
} Product;

INLINE void tile(const int rows, const int8_t *const w[NR], const Activations *x, long m, long k, long ahead,
                 int32_t *sums, long stride) {
    const int8_t *codes = x->codes + m * x->stride;
    ints acc[MR][NR];
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = ints_set(0);
    long whole = k / 64 * 64;
    for (long at = 0; at < whole; at += 64) {
        bytes b[NR];
        _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) {
            if (ahead) __builtin_prefetch(w[0] + NR * at + j * 64 + ahead, 0, 3);
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
        i32x4 four = ints_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]) - W8_MOVED * x->sums[m + i];
        memcpy(sums + i * stride, &four, sizeof four);
    }
}

static void some_rows(int rows, const int8_t *const w[NR], const Activations *x, long m, long k, long ahead,
                      int32_t *sums, long stride) {
    switch (rows) {
    case 1: tile(1, w, x, m, k, ahead, sums, stride); break;
    case 2: tile(2, w, x, m, k, ahead, sums, stride); break;
    case 3: tile(3, w, x, m, k, ahead, sums, stride); break;
    case 4: tile(4, w, x, m, k, ahead, sums, stride); break;
    case 5: tile(5, w, x, m, k, ahead, sums, stride); break;
    }
}

static void multiply_chunk(const void *data, long index) {
    const Product *p = data;
    const Matrix *w = p->w;
    long m0 = index % p->row_chunks * p->rows, n0 = index / p->row_chunks * p->columns;
    long rows = p->call->m - m0 < p->rows ? p->call->m - m0 : p->rows;
    long columns = w->n - n0 < p->columns ? w->n - n0 : p->columns;
    long tiles = (rows + MR - 1) / MR;
    int32_t sums[MOST_ROWS][MOST_COLUMNS + NR];
    float scales[MOST_COLUMNS + NR];
    for (long j = 0; j < columns; j += NR) {
        const int8_t *weights[NR];
        for (int r = 0; r < NR; r++) {
            long row;
            const Part *part = tern_part_of(w, n0 + j + r, &row);
            weights[r] = (const int8_t *)part->weight + row * part->stride;
            scales[j + r] = part->scales[row];
        }
        for (long t = 0, m = 0; t < tiles; t++) {
            int some = (int)((rows - m + tiles - t - 1) / (tiles - t));
            some_rows(some, weights, &p->x, m0 + m, w->k, t == 0 ? PREFETCH_BYTES : 0, &sums[m][j],
                      MOST_COLUMNS + NR);
            m += some;
        }
    }
    for (long m = 0; m < rows; m++) {
        float row[MOST_COLUMNS], x_scale = p->x.scales[m0 + m];
        for (long j = 0; j < columns; j++) row[j] = (float)sums[m][j] * scales[j] * x_scale;
        tern_finish(w, p->call, m0 + m, n0, columns, row);
    }
}

void tern_matmul_int8(const Matrix *w, const Call *call) {
    Product p = {.w = w, .call = call, .x = tern_quantize_rows(call, w->k, w->k)};
    p.rows = tern_clamp(X_BYTES / p.x.stride / MR * MR, MR, MOST_ROWS);
    p.row_chunks = (call->m + p.rows - 1) / p.rows;
    p.columns = p.row_chunks > 1 ? MOST_COLUMNS : tern_clamp(W_BYTES / w->k / NR * NR, NR, MOST_COLUMNS);
    tern_parallel_for(multiply_chunk, &p, p.row_chunks * ((w->n + p.columns - 1) / p.columns));
}
