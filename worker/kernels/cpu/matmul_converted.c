/* Matrices whose weights are converted when they are multiplied: int8 with x as it is, nf4, fp8.

   An output is a dot product along K, which both operands have contiguous in memory, so nothing is packed:

       acc[lane] += w[k + lane] · x[k + lane]     k in steps, one vector per output
       sum      += horizontal sum of acc           after every K_BLOCK columns

   This order is the same for every shape of tile, so that an output's bits depend on its row of x and its
   row of W only. Many rows of x go by panels, which keep it, see lane_panels.h; few by tiles: a tile is MR rows of
   x times NR rows of W, converted into a buffer that stays in L1 while the rows of x pass.

   With AVX512-BF16 a product of two bf16 vectors takes 32 columns at once (its pairs are summed first, in
   float32); without, bf16 is widened to float32 when loaded. */

#include "convert.h"
#include "lanes.h"
#include "pool.h"

#include <stdlib.h>

#define NR 4
#if defined(TERN_AVX512)
#define MR 6
#elif defined(TERN_NEON)
#define MR 6
#else
#define MR 3
#endif
#define K_BLOCK 1024
#define MOST_ROWS 96         /* of x per chunk, a multiple of MR */
#define MOST_COLUMNS 128     /* of y per chunk, a multiple of NR */
#define X_BYTES (512 << 10)  /* of x per chunk: half of an L2 cache */
#define W_BYTES (64 << 10)   /* of W in the last shares of few rows of x */

/* ── tiles ────────────────────────────────────────────────────────────────────────────────────── */

/* MR rows of x (x_stride elements apart) by NR rows of w, k columns; c[i][0…3] = or += the sums. */
#define TILE(NAME, W, X, STEP, LOAD_W, LOAD_X, DOT, OPERAND)                                                   \
    INLINE void NAME(const int rows, const W *const w[NR], const X *x, long x_stride, long k,                  \
                     float *c, long c_stride, int first) {                                                    \
        vf acc[MR][NR];                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)                                                \
            _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) acc[i][j] = (vf){};                         \
        long whole = k - k % STEP;                                                                            \
        for (long at = 0; at < whole; at += STEP) {                                                           \
            OPERAND b[NR];                                                                                    \
            _Pragma("GCC unroll 8") for (int j = 0; j < NR; j++) {                                            \
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
    static void NAME##_rows(int rows, const void *const *w, const void *x, long x_stride, long k,              \
                            float *c, long c_stride, int first) {                                             \
        const W *const *v = (const W *const *)w;                                                              \
        switch (rows) {                                                                                       \
        case 1: NAME(1, v, x, x_stride, k, c, c_stride, first); break;                                 \
        case 2: NAME(2, v, x, x_stride, k, c, c_stride, first); break;                                 \
        case 3: NAME(3, v, x, x_stride, k, c, c_stride, first); break;                                 \
        MORE_ROWS(NAME)                                                                                       \
        }                                                                                                     \
    }

#if MR == 6
#define MORE_ROWS(NAME)                                                           \
    case 4: NAME(4, v, x, x_stride, k, c, c_stride, first); break;         \
    case 5: NAME(5, v, x, x_stride, k, c, c_stride, first); break;         \
    case 6: NAME(6, v, x, x_stride, k, c, c_stride, first); break;
#else
#define MORE_ROWS(NAME)
#endif

typedef void (*Tile)(int, const void *const *, const void *, long, long, float *, long, int);

#if defined(TERN_AVX512) && defined(__AVX512BF16__)
INLINE __m512i load_bf16_pairs(const bf16 *p) { return _mm512_loadu_si512(p); }
INLINE vf dot_bf16_pairs(__m512i a, __m512i b, vf c) { return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
TILE(tile_bf16, bf16, bf16, 32, load_bf16_pairs, load_bf16_pairs, dot_bf16_pairs, __m512i)
#else
TILE(tile_bf16, bf16, bf16, LANES, load_bf16, load_bf16, fma_, vf)
#endif
TILE(tile_f32, float, float, LANES, load_f32, load_f32, fma_, vf)
TILE(tile_f32_f16, float, f16, LANES, load_f32, load_f16, fma_, vf)

#if defined(TERN_AVX512) && defined(__AVX512BF16__)
#include "lane_panels.h"
#endif

/* ── a product ────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const Matrix *w;
    const Call *call;
    Tile tile;
    Convert convert;
    int w_bytes; /* of a weight once it is converted */
    int x_bytes;
#if HAS_PANELS
    PanelTile panel;
    long unit_bytes; /* of a number in a panel */
    uint32_t *packed; /* x, tile by tile */
    long packed_stride; /* units a row */
#endif
} Product;

/* `block` weights of a row, as they are multiplied. */
static const void *convert(const Product *p, const Part *part, long row, long k, long block, float *to) {
    int halves = p->w->kind == NF4 ? 1 : 2; /* bytes, of a stored weight */
    const char *ahead = (const char *)part->weight + (row + 2 * NR) * part->stride;
    for (long at = k * halves / 2; at < (k + block) * halves / 2; at += 64) __builtin_prefetch(ahead + at, 0, 2);
    p->convert(p->w, part, row, k, block, to, p->w_bytes == 4 ? F32 : BF16);
    return to;
}

/* Some columns of a block. */
static void multiply(const Product *p, long m0, long rows, long n0, long columns) {
    const Matrix *w = p->w;
    const Call *call = p->call;
    long tiles = (rows + MR - 1) / MR;
    float sums[MOST_ROWS][MOST_COLUMNS + NR];
    float converted[NR][K_BLOCK];
    for (long j = 0; j < columns; j += NR) {
        const Part *parts[NR];
        long own[NR];
        for (int r = 0; r < NR; r++) parts[r] = tern_part_of(w, n0 + j + r, &own[r]);
        for (long k = 0; k < w->k; k += K_BLOCK) {
            long block = w->k - k < K_BLOCK ? w->k - k : K_BLOCK;
            const void *weights[NR];
            for (int r = 0; r < NR; r++) weights[r] = convert(p, parts[r], own[r], k, block, converted[r]);
            for (long t = 0, m = 0; t < tiles; t++) { /* tiles as equal as can be */
                int some = (int)((rows - m + tiles - t - 1) / (tiles - t));
                const char *x = (const char *)call->x + ((m0 + m) * call->x_stride + k) * p->x_bytes;
                p->tile(some, weights, x, call->x_stride, block, &sums[m][j], MOST_COLUMNS + NR, k == 0);
                m += some;
            }
        }
    }
    tern_finish(w, call, m0, rows, n0, columns, sums[0], MOST_COLUMNS + NR);
}

static void multiply_columns(const void *product, long m0, long rows, long first, long end) {
    for (long n0 = first; n0 < end; n0 += MOST_COLUMNS)
        multiply(product, m0, rows, n0, end - n0 < MOST_COLUMNS ? end - n0 : MOST_COLUMNS);
}

#if HAS_PANELS

/* `block` numbers of `type` as they are multiplied: f16 in float32, in `room`. */
static const void *units_of(const void *from, int type, long block, float *room) {
    if (type != F16) return from;
    for (long i = 0; i < block; i += LANES) store(room + i, load_some((const f16 *)from + i, F16, block - i));
    return room;
}

static void pack_tile(const void *product, long tile) {
    const Product *p = product;
    const Call *call = p->call;
    long m0 = first_row(call->m, tile), rows = first_row(call->m, tile + 1) - m0;
    float room[PANEL_MR][K_BLOCK];
    for (long k = 0; k < p->w->k; k += K_BLOCK) {
        long block = p->w->k - k < K_BLOCK ? p->w->k - k : K_BLOCK, steps = (block * p->unit_bytes + 63) / 64;
        const void *of[PANEL_MR];
        for (long r = 0; r < rows; r++)
            of[r] = units_of((const char *)call->x + ((m0 + r) * call->x_stride + k) * p->x_bytes, call->x_type, block, room[r]);
        uint32_t *to = p->packed + m0 * p->packed_stride + k * p->unit_bytes / 4 * rows;
        switch (rows) {
        case 10: pack_rows(of, 10, block * p->unit_bytes, 10 * steps, 10, to); break;
        case 11: pack_rows(of, 11, block * p->unit_bytes, 11 * steps, 11, to); break;
        default: pack_rows(of, 12, block * p->unit_bytes, 12 * steps, 12, to);
        }
    }
}

static void multiply_panels(const void *product, long tile0, long tiles, long first, long end) {
    const Product *p = product;
    const Matrix *w = p->w;
    long all = p->call->m, m0 = first_row(all, tile0);
    _Alignas(64) uint32_t panel[16 * PANEL * (K_BLOCK / 16 + 1)];
    _Alignas(64) float sums[MOST_TILES * PANEL_MR][PANEL], room[16][K_BLOCK];
    for (long n = first; n < end; n += PANEL) {
        for (long k = 0; k < w->k; k += K_BLOCK) {
            long block = w->k - k < K_BLOCK ? w->k - k : K_BLOCK, steps = (block * p->unit_bytes + 63) / 64;
            const void *of[PANEL];
            for (int half = 0; half < PANEL; half += 16) {
                for (int r = 0; r < 16; r++) {
                    long own;
                    const Part *part = tern_part_of(w, n + half + r, &own);
                    of[half + r] = convert(p, part, own, k, block, room[r]);
                }
                pack_rows(of + half, 16, block * p->unit_bytes, PANEL * (steps + 1), PANEL, panel + half);
            }
            for (long t = 0; t < tiles; t++) {
                long m = first_row(all, tile0 + t), rows = first_row(all, tile0 + t + 1) - m;
                const uint32_t *x = p->packed + m * p->packed_stride + k * p->unit_bytes / 4 * rows;
                p->panel((int)rows, panel, x, steps, sums[m - m0], k == 0);
            }
        }
        long rows = first_row(all, tile0 + tiles) - m0;
        tern_finish(w, p->call, m0, rows, n, end - n < PANEL ? end - n : PANEL, sums[0], PANEL);
    }
}

/* Memory for x in panels; the calling thread keeps it for its next product. */
static uint32_t *packing_memory(long units) {
    static _Thread_local uint32_t *memory;
    static _Thread_local long size;
    if (size < units) {
        free(memory);
        size = units;
        memory = aligned_alloc(64, (size * 4 + 63) / 64 * 64);
        if (!memory) abort(); /* as Python does for so little */
    }
    return memory;
}

#endif

void tern_matmul_converted(const Matrix *w, const Call *call) {
    Product p = {.w = w, .call = call, .convert = tern_converter(w->kind)};
    /* Weights take the type of x, but for f16: that has little range, and gains nothing. */
    int type = call->x_type == BF16 ? BF16 : F32;
    p.w_bytes = type == F32 ? 4 : 2;
    p.x_bytes = call->x_type == F32 ? 4 : 2;
    p.tile = type == BF16 ? tile_bf16_rows : call->x_type == F16 ? tile_f32_f16_rows : tile_f32_rows;
#if HAS_PANELS
    if (call->m >= MANY) {
        p.unit_bytes = type == BF16 ? 2 : 4;
        p.panel = type == BF16 ? panel_bf16 : panel_f32;
        p.packed_stride = (w->k * p.unit_bytes + 63) / 64 * 16;
        p.packed = packing_memory(call->m * p.packed_stride);
        long tiles = (call->m + PANEL_MR - 1) / PANEL_MR;
        tern_parallel_for(pack_tile, &p, tiles);
        tern_multiply_blocks(multiply_panels, &p, tiles, MOST_TILES, w->n, PANEL, 2 * PANEL);
        return;
    }
#endif
    long rows = tern_clamp(X_BYTES / (w->k * p.x_bytes) / MR * MR, MR, MOST_ROWS);
    tern_multiply_blocks(multiply_columns, &p, call->m, rows, w->n, NR, W_BYTES / (w->k * p.w_bytes));
}
