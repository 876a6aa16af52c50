/* One tile of attention in bfloat16, where the processor multiplies pairs of it (AVX512-BF16):
 *
 *     scores   few rows: lanes are keys; many: lanes are rows, as then 16 are softened at once
 *              keys are turned to [pair of dims][key], queries are [block of 8 or 32][pair of dims][row]
 *     values   lanes are dims: values are paired to [pair of positions][dim], weights are rounded to bf16
 *
 * Products are exact and sums are in float32, two products at a time. Turning and pairing cost about as much as
 * four rows, and spare each row its horizontal sums. A row's order of sums depends on absolute positions alone.
 */
#pragma once
#include "attention_rows.h"

#if LANES == 16 && defined(__AVX512BF16__)
#include "transpose.h"
#define HAS_PAIRS 1

enum { MOST_PAIRED_DIM = 256, FEW = FEW_ROWS };

INLINE int can_pair(const attention_layer *layer) {
    return layer->dtype == BF16 && layer->head_dim % CHUNK == 0 && layer->head_dim <= MOST_PAIRED_DIM;
}

/* sum += a · b, by the instruction as it stands: with so many sums GCC 12 copies and spills them around its intrinsic. */
#define ADD_PAIRS(sum, a, b) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
INLINE vi load_pairs(const void *p) { return (vi)_mm512_loadu_si512(p); }
INLINE vi repeat(const uint32_t *both) {
    vi all;
    __asm__("vpbroadcastd %1, %0" : "=v"(all) : "m"(*both));
    return all;
}

/* Where a pair of dims of one row of a unit's queries is. */
INLINE int64_t query_place(int64_t num_rows, int64_t row, int64_t pair, int64_t dim) {
    int64_t block = num_rows > FEW ? MANY : FEW;
    return row / block * block * (dim / 2) + pair * block + row % block;
}

/* to [pair of dims][TILE keys] */
INLINE void turn_keys(const place *here, int64_t dim, uint32_t *to) {
    for (int64_t key = 0; key < TILE; key += 16)
        for (int64_t d = 0; d < dim; d += CHUNK) {
            __m512i rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                rows[i] = _mm512_loadu_si512(here->k[key + i] + 2 * d);
            }
            transpose16(rows);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_store_si512(to + (d / 2 + i) * TILE + key, rows[i]);
        }
}

/* to [pair of positions][dim], of each chunk the even dims first, as a `pair` has them */
INLINE void pair_values(const place *here, int64_t dim, uint32_t *to) {
    for (int64_t k = here->from / 2; 2 * k < here->to; k++)
        for (int64_t d = 0; d < dim; d += CHUNK) {
            __m512i a = _mm512_loadu_si512(here->v[2 * k] + 2 * d), b = _mm512_loadu_si512(here->v[2 * k + 1] + 2 * d);
            _mm512_store_si512(to + k * dim + d, _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)));
            _mm512_store_si512(to + k * dim + d + LANES, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b));
        }
}

/* Scores of `rows` queries and all keys of a tile. `ahead`: keys that are needed next, or NULL. */
INLINE void paired_scores(const uint32_t *q, const uint32_t *k, const char *const *ahead, int64_t dim, const int rows,
                          float *out) {
    vf s[FEW][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = (vf){};
    for (int64_t p = 0, at = 0; p < dim / 2; p++) {
        for (int line = 0; ahead && line < 2; line++, at += 64) { /* of TILE · dim / CHUNK in all */
            if (at == 2 * dim) at = 0, ahead++;
            __builtin_prefetch(*ahead + at, 0, 2);
        }
        vi a = load_pairs(k + p * TILE), b = load_pairs(k + p * TILE + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vi x = repeat(q + p * FEW + r);
            ADD_PAIRS(s[r][0], x, a);
            ADD_PAIRS(s[r][1], x, b);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) store(out + r * TILE, s[r][0]), store(out + r * TILE + LANES, s[r][1]);
}

/* mixed = mixed · decay + Σ p v, of `rows` rows and `vectors` vectors of a head; a weight's pair is at
 * p[row · of_row + pair · of_pair];
 * `ahead`: values that are needed next, or NULL */
INLINE void mix_pairs(float *mixed, const uint32_t *p, const int of_row, const int of_pair, const float *decay, const uint32_t *v, const char *const *ahead,
                      int64_t d, int64_t from, int64_t to, int64_t dim, const int rows, const int vectors) {
    vf o[3][8];
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < vectors; c++) o[r][c] = load(mixed + r * dim + d + c * LANES) * splat(decay[r]);
    for (int64_t k = from; k < to; k++) {
        vi weights[3];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) weights[r] = repeat(p + r * of_row + k * of_pair);
#pragma GCC unroll 8
        for (int c = 0; c < vectors; c++) {
            if (ahead) __builtin_prefetch(ahead[2 * k + c % 2] + 2 * d + c / 2 * 64, 0, 2);
            vi x = load_pairs(v + k * dim + d + c * LANES);
            IN_REGISTER(x);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) ADD_PAIRS(o[r][c], weights[r], x);
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < vectors; c++) store(mixed + r * dim + d + c * LANES, o[r][c]);
}

INLINE void mix_paired_heads(float *mixed, const uint32_t *p, const int of_row, const int of_pair, const float *decay, const uint32_t *v,
                             const char *const *ahead, int64_t from, int64_t to, int64_t dim, const int rows) {
    int64_t d = 0;
    for (; d + 8 * LANES <= dim; d += 8 * LANES) mix_pairs(mixed, p, of_row, of_pair, decay, v, ahead, d, from, to, dim, rows, 8);
    for (; d < dim; d += CHUNK) mix_pairs(mixed, p, of_row, of_pair, decay, v, ahead, d, from, to, dim, rows, 2);
}

static __attribute__((noinline)) void few_rows(const rows_at *at, const attention_layer *layer, int64_t rows, const uint32_t *q, int64_t begin,
                     const place *here, const place *next, const uint32_t *k, const uint32_t *v, state s) {
    int64_t dim = layer->head_dim, first = here->from / 2, last = (here->to + 1) / 2;
    const char *const *next_k = next ? next->k : NULL, *const *next_v = next ? next->v : NULL;
    float p[FEW * TILE], decay[FEW];
    uint32_t weights[FEW * TILE / 2];
    if (rows > 4) paired_scores(q, k, next_k, dim, 8, p);
    else if (rows > 2) paired_scores(q, k, next_k, dim, 4, p);
    else paired_scores(q, k, next_k, dim, 2, p);
    for (int64_t r = 0; r < rows; r++) {
        decay[r] = soften_row(at, layer, r, begin, p + r * TILE, s);
        __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(p + r * TILE + LANES), (__m512)load(p + r * TILE));
        _mm512_storeu_si512(weights + r * (TILE / 2), (__m512i)both);
    }
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2)
        mix_paired_heads(s.mixed + r * dim, weights + r * (TILE / 2), TILE / 2, 1, decay + r, v, r ? NULL : next_v, first, last, dim, 2);
    if (r < rows) mix_paired_heads(s.mixed + r * dim, weights + r * (TILE / 2), TILE / 2, 1, decay + r, v, r ? NULL : next_v, first, last, dim, 1);
    for (int64_t k = 0; next && k < TILE; k++) /* what those loops did not ask for */
        for (int64_t d = 0; (k < 2 * first || k >= 2 * last) && d < dim; d += CHUNK) ask(next->v[k] + 2 * d, BF16);
}

/* Scores of `keys` keys and `vectors` · 16 rows, to [key][MANY rows]. `ahead`: 16 keys or values that are needed next, or
 * NULL. Sums want all registers: functions of their own. */
INLINE void turned_scores(const uint32_t *q, const uint32_t *k, const char *const *ahead, int64_t dim, const int keys,
                          const int vectors, float *out) {
    vf s[16][2];
#pragma GCC unroll 16
    for (int j = 0; j < keys; j++) s[j][0] = s[j][1] = (vf){};
    for (int64_t p = 0; p < dim / 2; p++, q += MANY, k += TILE) {
        if (ahead) __builtin_prefetch(ahead[p % 16] + p / 16 * 64, 0, 2);
        vi rows[2];
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++) {
            rows[i] = load_pairs(q + i * LANES);
            IN_REGISTER(rows[i]);
        }
#pragma GCC unroll 16
        for (int j = 0; j < keys; j++) {
            vi key = repeat(k + j);
#pragma GCC unroll 2
            for (int i = 0; i < vectors; i++) ADD_PAIRS(s[j][i], key, rows[i]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < keys; j++)
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++) store(out + j * MANY + i * LANES, s[j][i]);
}

static __attribute__((noinline)) void scores_of_32(const uint32_t *q, const uint32_t *k, const char *const *ahead,
                                                   int64_t dim, float *out) {
    turned_scores(q, k, ahead, dim, 12, 2, out);
    turned_scores(q, k + 12, ahead ? ahead + 16 : NULL, dim, 12, 2, out + 12 * MANY);
    turned_scores(q, k + 24, NULL, dim, 8, 2, out + 24 * MANY);
}

static __attribute__((noinline)) void scores_of_16(const uint32_t *q, const uint32_t *k, const char *const *ahead,
                                                   int64_t dim, float *out) {
    turned_scores(q, k, ahead, dim, 16, 1, out);
    turned_scores(q, k + 16, ahead ? ahead + 16 : NULL, dim, 16, 1, out + 16 * MANY);
}

static __attribute__((noinline)) void mix_three(float *mixed, const uint32_t *p, const float *decay, const uint32_t *v,
                                                int64_t from, int64_t to, int64_t dim) {
    mix_paired_heads(mixed, p, 1, MANY, decay, v, NULL, from, to, dim, 3);
}

static __attribute__((noinline)) void mix_one(float *mixed, const uint32_t *p, const float *decay, const uint32_t *v,
                                              int64_t from, int64_t to, int64_t dim) {
    mix_paired_heads(mixed, p, 1, MANY, decay, v, NULL, from, to, dim, 1);
}

/* A block of up to MANY rows from `row` on. */
static __attribute__((noinline)) void many_rows(const rows_at *at, const attention_layer *layer, int64_t row, int64_t rows, const uint32_t *q,
                      int64_t begin, const place *here, const char *const *ahead, const uint32_t *k, const uint32_t *v,
                      state s) {
    int64_t dim = layer->head_dim, from = here->from / 2, to = (here->to + 1) / 2;
    float p[TILE * MANY] __attribute__((aligned(64))), decay[MANY];
    uint32_t weights[TILE / 2 * MANY] __attribute__((aligned(64)));
    (rows > LANES ? scores_of_32 : scores_of_16)(q, k, ahead, dim, p);
    for (int64_t i = 0; i < rows; i += LANES) {
        soften_rows(at, layer, row + i, least(rows - i, LANES), begin, p + i, s, decay + i);
        for (int j = 0; j < TILE; j += 2) {
            vi even = (vi)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(p + j * MANY + i)));
            vi odd = (vi)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(p + (j + 1) * MANY + i)));
            vi both = even | (odd << 16);
            memcpy(weights + j / 2 * MANY + i, &both, sizeof both);
        }
    }
    int64_t r = 0;
    for (; r + 3 <= rows; r += 3) mix_three(s.mixed + (row + r) * dim, weights + r, decay + r, v, from, to, dim);
    for (; r < rows; r++) mix_one(s.mixed + (row + r) * dim, weights + r, decay + r, v, from, to, dim);
}

static __attribute__((noinline)) void tile_pairs(const rows_at *at, const attention_layer *layer, int64_t num_rows, const float *q,
        int64_t begin, const place *here, const place *next, state s) {
    int64_t dim = layer->head_dim;
    const uint32_t *queries = (const uint32_t *)q;
    uint32_t k[TILE / 2 * MOST_PAIRED_DIM] __attribute__((aligned(64)));
    uint32_t v[TILE / 2 * MOST_PAIRED_DIM] __attribute__((aligned(64)));
    turn_keys(here, dim, k);
    pair_values(here, dim, v);
    if (num_rows <= FEW) {
        few_rows(at, layer, num_rows, queries, begin, here, next, k, v, s);
        return;
    }
    for (int64_t row = 0; row < num_rows; row += MANY) {
        const char *const *ahead = next && row < 2 * MANY ? (row ? next->v : next->k) : NULL;
        const uint32_t *block = queries + query_place(num_rows, row, 0, dim);
        many_rows(at, layer, row, least(num_rows - row, MANY), block, begin, here, ahead, k, v, s);
    }
}

#else
#define HAS_PAIRS 0
INLINE int can_pair(const attention_layer *layer) { return layer == NULL; }
#define tile_pairs tile_bf16
#endif
