/* One tile of attention in bfloat16, where the processor multiplies pairs of it (AVX512-BF16):
 *
 *     scores   lanes are keys:         keys are turned to [pair of dims][key], queries are [pair of dims][row]
 *     values   lanes are dims:         values are paired to [pair of positions][dim], weights are rounded to bf16
 *
 * Products are exact and sums are in float32, two products at a time. Turning and pairing cost about as much as
 * four rows, and spare each row its horizontal sums. A row's order of sums depends on absolute positions alone.
 */
#pragma once
#include "attention_tile.h"

#if LANES == 16 && defined(__AVX512BF16__)
#include "transpose.h"
#define HAS_PAIRS 1

enum { MOST_PAIRED_DIM = 256, ROWS_AT_ONCE = 8 };

INLINE int can_pair(const attention_layer *layer) {
    return layer->dtype == BF16 && layer->head_dim % CHUNK == 0 && layer->head_dim <= MOST_PAIRED_DIM;
}

INLINE vf dot_pairs(vi a, vi b, vf c) { return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
INLINE vi load_pairs(const void *p) { return (vi)_mm512_loadu_si512(p); }
INLINE vi repeat(uint32_t both) { return (vi)_mm512_set1_epi32((int32_t)both); }

/* Where the queries' pair of dims of one row is: [rows / ROWS_AT_ONCE][pair of dims][row % ROWS_AT_ONCE]. */
INLINE int64_t query_place(int64_t row, int64_t pair, int64_t dim) {
    return row / ROWS_AT_ONCE * ROWS_AT_ONCE * (dim / 2) + pair * ROWS_AT_ONCE + row % ROWS_AT_ONCE;
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
    vf s[ROWS_AT_ONCE][2];
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
            vi x = repeat(q[p * ROWS_AT_ONCE + r]);
            __asm__("" : "+v"(x));
            s[r][0] = dot_pairs(x, a, s[r][0]);
            s[r][1] = dot_pairs(x, b, s[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) store(out + r * TILE, s[r][0]), store(out + r * TILE + LANES, s[r][1]);
}

/* mixed = mixed · decay + Σ p v, of `rows` rows and `vectors` vectors of a head; p [row][TILE / 2];
 * `ahead`: values that are needed next, or NULL */
INLINE void mix_pairs(float *mixed, const uint32_t *p, const float *decay, const uint32_t *v, const char *const *ahead,
                      int64_t d, int64_t from, int64_t to, int64_t dim, const int rows, const int vectors) {
    vf o[2][8];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < vectors; c++) o[r][c] = load(mixed + r * dim + d + c * LANES) * splat(decay[r]);
    for (int64_t k = from; k < to; k++) {
        vi weights[2];
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) weights[r] = repeat(p[r * (TILE / 2) + k]);
#pragma GCC unroll 8
        for (int c = 0; c < vectors; c++) {
            if (ahead) __builtin_prefetch(ahead[2 * k + c % 2] + 2 * d + c / 2 * 64, 0, 2);
            vi x = load_pairs(v + k * dim + d + c * LANES);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) o[r][c] = dot_pairs(weights[r], x, o[r][c]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < vectors; c++) store(mixed + r * dim + d + c * LANES, o[r][c]);
}

INLINE void mix_paired_heads(float *mixed, const uint32_t *p, const float *decay, const uint32_t *v,
                             const char *const *ahead, int64_t from, int64_t to, int64_t dim, const int rows) {
    int64_t d = 0;
    for (; d + 8 * LANES <= dim; d += 8 * LANES) mix_pairs(mixed, p, decay, v, ahead, d, from, to, dim, rows, 8);
    for (; d < dim; d += CHUNK) mix_pairs(mixed, p, decay, v, ahead, d, from, to, dim, rows, 2);
}

static __attribute__((noinline)) void tile_pairs(const rows_at *at, const attention_layer *layer, int64_t num_rows, const float *q,
        int64_t begin, const place *here, const place *next, state s) {
    int64_t dim = layer->head_dim, first = here->from / 2, last = (here->to + 1) / 2;
    uint32_t k[TILE / 2 * MOST_PAIRED_DIM] __attribute__((aligned(64)));
    uint32_t v[TILE / 2 * MOST_PAIRED_DIM] __attribute__((aligned(64)));
    turn_keys(here, dim, k);
    pair_values(here, dim, v);
    for (int64_t row = 0; row < num_rows; row += ROWS_AT_ONCE) {
        int64_t rows = least(num_rows - row, ROWS_AT_ONCE);
        const uint32_t *queries = (const uint32_t *)q + query_place(row, 0, dim);
        const char *const *next_k = next && !row ? next->k : NULL, *const *next_v = next && !row ? next->v : NULL;
        float p[ROWS_AT_ONCE * TILE], decay[ROWS_AT_ONCE];
        uint32_t weights[ROWS_AT_ONCE * TILE / 2];
        if (rows > 4) paired_scores(queries, k, next_k, dim, 8, p);
        else if (rows > 2) paired_scores(queries, k, next_k, dim, 4, p);
        else paired_scores(queries, k, next_k, dim, 2, p);
        for (int64_t r = 0; r < rows; r++) {
            decay[r] = soften_row(at, layer, row + r, begin, p + r * TILE, s);
            __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(p + r * TILE + LANES), (__m512)load(p + r * TILE));
            _mm512_storeu_si512(weights + r * (TILE / 2), (__m512i)both);
        }
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2)
            mix_paired_heads(s.mixed + (row + r) * dim, weights + r * (TILE / 2), decay + r, v, r ? NULL : next_v, first, last, dim, 2);
        if (r < rows) mix_paired_heads(s.mixed + (row + r) * dim, weights + r * (TILE / 2), decay + r, v, r ? NULL : next_v, first, last, dim, 1);
    }
}

#else
#define HAS_PAIRS 0
INLINE int can_pair(const attention_layer *layer) { return layer == NULL; }
#define tile_pairs tile_bf16
#endif
