/* Matrices whose products are computed in floating point: as stored (f32, bf16, f16), or converted.

   An output is a dot product along K, which both operands have contiguous in memory, so nothing is packed:

       acc[lane] += w[k + lane] · x[k + lane]     k in steps, one vector per output
       sum      += horizontal sum of acc           after every K_BLOCK columns

   This order is the same for every shape of tile, so that an output's bits depend on its row of x and its
   row of W only. A tile is MR rows of x times NR rows of W: NR · K_BLOCK weights stay in L1 while the rows
   of x pass. Weights that must be converted are, once per tile of W, into a buffer that stays in L1.

   With AVX512-BF16 a product of two bf16 vectors takes 32 columns at once (its pairs are summed first, in
   float32); without, bf16 is widened to float32 when loaded. */

#include "matmul.h"
#include "pool.h"

#define NR 4
#if defined(TERN_AVX512)
#define MR 6
#elif defined(TERN_NEON)
#define MR 6
#else
#define MR 3
#endif
#define K_BLOCK 1024
#define PREFETCH_BYTES 8192  /* ahead, in one line over the rows of a tile: the order of memory */
#define MOST_ROWS 96         /* of x per chunk, a multiple of MR */
#define MOST_COLUMNS 128     /* of y per chunk, a multiple of NR */
#define X_BYTES (512 << 10)  /* of x per chunk: half of an L2 cache */
#define W_BYTES (128 << 10)  /* of W per chunk when there are few rows of x */

/* A vector that is used several times is loaded once: compilers like to fold each use into a load. */
#if defined(TERN_AVX512) || defined(TERN_AVX2)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v) (void)0
#endif

/* ── tiles ────────────────────────────────────────────────────────────────────────────────────── */

/* MR rows of x (x_stride elements apart) by NR rows of w, k columns; c[i][0…3] = or += the sums. */
#define TILE(NAME, W, X, STEP, LOAD_W, LOAD_X, DOT, OPERAND)                                                   \
    INLINE void NAME(const int rows, const W *const w[NR], const X *x, long x_stride, long k, long ahead,      \
                     float *c, long c_stride, int first) {                                                    \
        vf acc[MR][NR];                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)                                                \
            _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = vzero();                         \
        long whole = k - k % STEP;                                                                            \
        for (long at = 0; at < whole; at += STEP) {                                                           \
            OPERAND b[NR];                                                                                    \
            _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) {                                            \
                if (ahead) __builtin_prefetch((const char *)(w[0] + NR * at) + j * 64 + ahead, 0, 3);         \
                b[j] = LOAD_W(w[j] + at);                                                                     \
                IN_REGISTER(b[j]);                                                                            \
            }                                                                                                 \
            _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {                                          \
                OPERAND a = LOAD_X(x + i * x_stride + at);                                                    \
                IN_REGISTER(a);                                                                               \
                _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = DOT(a, b[j], acc[i][j]);     \
            }                                                                                                 \
        }                                                                                                     \
        if (whole < k) { /* the last columns, filled up with zeros */                                         \
            W last_w[STEP];                                                                                   \
            X last_x[STEP];                                                                                   \
            memset(last_w, 0, sizeof last_w);                                                                 \
            memset(last_x, 0, sizeof last_x);                                                                 \
            OPERAND b[NR];                                                                                    \
            _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) {                                            \
                memcpy(last_w, w[j] + whole, (k - whole) * sizeof(W));                                        \
                b[j] = LOAD_W(last_w);                                                                        \
            }                                                                                                 \
            _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {                                          \
                memcpy(last_x, x + i * x_stride + whole, (k - whole) * sizeof(X));                            \
                OPERAND a = LOAD_X(last_x);                                                                   \
                _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = DOT(a, b[j], acc[i][j]);     \
            }                                                                                                 \
        }                                                                                                     \
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {                                              \
            v4 sums = sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]), before;                               \
            if (!first) {                                                                                     \
                memcpy(&before, c + i * c_stride, sizeof before);                                             \
                sums += before;                                                                               \
            }                                                                                                 \
            memcpy(c + i * c_stride, &sums, sizeof sums);                                                     \
        }                                                                                                     \
    }                                                                                                         \
    static void NAME##_rows(int rows, const void *const *w, const void *x, long x_stride, long k, long ahead, \
                            float *c, long c_stride, int first) {                                             \
        const W *const *v = (const W *const *)w;                                                              \
        switch (rows) {                                                                                       \
        case 1: NAME(1, v, x, x_stride, k, ahead, c, c_stride, first); break;                                 \
        case 2: NAME(2, v, x, x_stride, k, ahead, c, c_stride, first); break;                                 \
        case 3: NAME(3, v, x, x_stride, k, ahead, c, c_stride, first); break;                                 \
        MORE_ROWS(NAME)                                                                                       \
        }                                                                                                     \
    }

#if MR == 6
#define MORE_ROWS(NAME)                                                           \
    case 4: NAME(4, v, x, x_stride, k, ahead, c, c_stride, first); break;         \
    case 5: NAME(5, v, x, x_stride, k, ahead, c, c_stride, first); break;         \
    case 6: NAME(6, v, x, x_stride, k, ahead, c, c_stride, first); break;
#else
#define MORE_ROWS(NAME)
#endif

typedef void (*Tile)(int, const void *const *, const void *, long, long, long, float *, long, int);

#if defined(TERN_AVX512) && defined(__AVX512BF16__)
INLINE __m512i load_bf16_pairs(const bf16 *p) { return _mm512_loadu_si512(p); }
INLINE vf dot_bf16_pairs(__m512i a, __m512i b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
TILE(tile_bf16, bf16, bf16, 32, load_bf16_pairs, load_bf16_pairs, dot_bf16_pairs, __m512i)
#else
TILE(tile_bf16, bf16, bf16, VL, load_bf16, load_bf16, vfma, vf)
#endif
TILE(tile_f32, float, float, VL, load_f32, load_f32, vfma, vf)
TILE(tile_f16, f16, f16, VL, load_f16, load_f16, vfma, vf)
TILE(tile_f32_f16, float, f16, VL, load_f32, load_f16, vfma, vf)

/* ── a product ────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const Matrix *w;
    const Call *call;
    Tile tile;
    int stored; /* bytes of a weight that is multiplied as it is stored; 0: it is converted */
    int x_bytes;
    long rows, columns, row_chunks;
} Product;

/* Where row n of the matrix begins. Rows behind the last one are the last one: their sums are dropped. */
static const char *row_of(const Matrix *w, long n, const Part **part, long *row) {
    if (n >= w->n) n = w->n - 1;
    const Part *p = w->parts;
    while (n >= p->rows) n -= p++->rows;
    *part = p;
    *row = n;
    return (const char *)p->weight + n * p->stride;
}

static void multiply_chunk(const void *data, long index) {
    const Product *p = data;
    const Matrix *w = p->w;
    const Call *call = p->call;
    long m0 = index % p->row_chunks * p->rows, n0 = index / p->row_chunks * p->columns;
    long rows = call->m - m0 < p->rows ? call->m - m0 : p->rows;
    long columns = w->n - n0 < p->columns ? w->n - n0 : p->columns;
    long tiles = (rows + MR - 1) / MR;
    float sums[MOST_ROWS][MOST_COLUMNS + NR];
    for (long j = 0; j < columns; j += NR) {
        const char *begin[NR];
        const Part *part;
        long row;
        for (int r = 0; r < NR; r++) begin[r] = row_of(w, n0 + j + r, &part, &row);
        for (long k = 0; k < w->k; k += K_BLOCK) {
            long block = w->k - k < K_BLOCK ? w->k - k : K_BLOCK;
            const void *weights[NR];
            for (int r = 0; r < NR; r++) weights[r] = begin[r] + k * p->stored;
            long ahead = PREFETCH_BYTES;
            for (long t = 0, m = 0; t < tiles; t++) { /* tiles as equal as can be */
                int some = (int)((rows - m + tiles - t - 1) / (tiles - t));
                const char *x = (const char *)call->x + ((m0 + m) * call->x_stride + k) * p->x_bytes;
                p->tile(some, weights, x, call->x_stride, block, t == 0 ? ahead : 0, &sums[m][j],
                        MOST_COLUMNS + NR, k == 0);
                m += some;
            }
        }
    }
    for (long m = 0; m < rows; m++) tern_finish(w, call, m0 + m, n0, columns, sums[m]);
}

static long at_most(long a, long b) { return a < b ? a : b; }

void tern_matmul_float(const Matrix *w, const Call *call) {
    Product p = {.w = w, .call = call};
    p.stored = w->kind == F32 ? 4 : 2;
    p.x_bytes = call->x_type == F32 ? 4 : 2;
    p.tile = w->kind == F32 ? tile_f32_rows : w->kind == BF16 ? tile_bf16_rows : tile_f16_rows;
    p.rows = at_most(MOST_ROWS, X_BYTES / (w->k * p.x_bytes)) / MR * MR;
    if (p.rows < MR) p.rows = MR;
    p.row_chunks = (call->m + p.rows - 1) / p.rows;
    p.columns = MOST_COLUMNS;
    if (p.row_chunks == 1) {
        p.columns = at_most(MOST_COLUMNS, W_BYTES / (w->k * p.stored)) / NR * NR;
        if (p.columns < NR) p.columns = NR;
    }
    long chunks = p.row_chunks * ((w->n + p.columns - 1) / p.columns);
    tern_parallel_for(multiply_chunk, &p, chunks);
}
