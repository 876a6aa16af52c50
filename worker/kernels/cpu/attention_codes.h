/* One tile of attention over an int8 cache, multiplied as it lies where the processor sums products of bytes (AVX512-VNNI):
 *
 *     scores   (256 · Σ high k + Σ low k) · scale of q · scale of k: exact but for the rounding of q to 16 bits
 *     weights  times the scales of their values, rounded to 16 bits, a scale per row and tile: two digits again
 *     values   Σ weight v, exact, then one product and sum in float32 per tile
 *
 * Few rows: lanes are keys; many: lanes are rows, as in attention_pairs.h. Integer sums have no order, so a row's bits
 * depend on its own sequence alone. Against float32 on the same cache errors are below a bfloat16's rounding.
 */
#pragma once
#include "attention_rows.h"

#if LANES == 16 && defined(__AVX512VNNI__)
#include "codes.h"
#define HAS_CODES 1

enum { AT_ONCE = 4 }; /* rows whose sums of scores are in registers */
#define P_LIMIT 65535.0f
#define LEAST_WEIGHT 1e-30f /* less than any that counts */

INLINE int can_code(const attention_layer *layer) {
    return layer->key_scales && layer->dtype != F32 && layer->head_dim <= MOST_CODED_DIM;
}

/* sum += four products of unsigned u and signed s, by the instruction as it stands: see ADD_PAIRS. */
#define ADD_CODES(sum, u, s) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s))

INLINE __m512i repeat_codes(const void *four) {
    __m512i all;
    __asm__("vpbroadcastd %1, %0" : "=v"(all) : "m"(*(const uint32_t *)four));
    return all;
}

/* (256 · high + low - moved) · scales */
INLINE vf score_of(__m512i high, __m512i low, __m512i moved, vf q_scale, vf k_scale) {
    __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), moved);
    return (vf)_mm512_cvtepi32_ps(sum) * (q_scale * k_scale);
}

/* Weights times the scales of their values; none where there is none, whatever the scale. */
INLINE vf scaled_weight(vf p, vf scale) {
    return (vf)_mm512_maskz_mul_ps(_mm512_cmp_ps_mask((__m512)p, _mm512_setzero_ps(), _CMP_NEQ_UQ), (__m512)p, (__m512)scale);
}

/* ── few rows ─────────────────────────────────────────────────────────────────────────────────── */

/* Scores of `rows` rows from `row` on and all keys of a tile. `ahead`: keys that are needed next, or NULL. */
INLINE void coded_scores(coded_queries q, int64_t row, const coded_tile *t, const char *const *ahead, int64_t width,
                         const int rows, float *out) {
    const int8_t *digits = q.digits + row * 2 * MOST_CODED_DIM;
    __m512i s[AT_ONCE][2][2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) s[r][i / 2][i % 2] = _mm512_setzero_si512();
    for (int64_t d = 0, at = 0; d < width; d += 4) {
        for (int line = 0; ahead && line < 2; line++, at += WIDE) { /* of TILE · width / WIDE in all */
            if (at == width) at = 0, ahead++;
            __builtin_prefetch(*ahead + at, 0, 2);
        }
        __m512i a = _mm512_load_si512(t->keys + d / 4 * TILE), b = _mm512_load_si512(t->keys + d / 4 * TILE + LANES);
        IN_REGISTER(a);
        IN_REGISTER(b);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int digit = 0; digit < 2; digit++) {
                __m512i x = repeat_codes(digits + (2 * r + digit) * MOST_CODED_DIM + d);
                ADD_CODES(s[r][digit][0], a, x);
                ADD_CODES(s[r][digit][1], b, x);
            }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++)
            store(out + r * TILE + i * LANES,
                  score_of(s[r][0][i], s[r][1][i], _mm512_set1_epi32(q.moved[row + r]), splat(q.scale[row + r]),
                           load(t->key_scales + i * LANES)));
}

/* A row's weights → [digit][position]. Returns their scale. */
INLINE float code_weights(const float *p, const coded_tile *t, uint8_t *digits) {
    vf a = scaled_weight(load(p), load(t->value_scales));
    vf b = scaled_weight(load(p + LANES), load(t->value_scales + LANES));
    /* as integers they have their order, and NaN is the largest */
    float top = bits_to_float(_mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_max_epu32((__m512i)a, (__m512i)b), (__m512i)splat(LEAST_WEIGHT))));
    vf factor = splat(P_LIMIT / top);
    __m512i x = _mm512_cvtps_epi32((__m512)(a * factor)), y = _mm512_cvtps_epi32((__m512)(b * factor));
    _mm_storeu_si128((__m128i *)digits, _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 8)));
    _mm_storeu_si128((__m128i *)digits + 1, _mm512_cvtepi32_epi8(_mm512_srli_epi32(y, 8)));
    _mm_storeu_si128((__m128i *)digits + 2, _mm512_cvtepi32_epi8(x));
    _mm_storeu_si128((__m128i *)digits + 3, _mm512_cvtepi32_epi8(y));
    return top / P_LIMIT;
}

/* mixed = mixed · decay + scale · Σ weight v, of `rows` rows. A weight's digits of four positions are at
 * p[row · of_row + digit · of_digit + four · of_four]. */
INLINE void mix_codes(float *mixed, const uint32_t *p, const int of_row, const int of_digit, const int of_four,
                      const float *decay, const float *scale, const uint32_t *v, int64_t from, int64_t to, int64_t width,
                      const int rows) {
    for (int64_t d = 0; d < width; d += WIDE) {
        __m512i o[3][2][4];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++) o[r][c / 4][c % 4] = _mm512_setzero_si512();
        for (int64_t k = from; k < to; k++) {
            __m512i x[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                x[c] = _mm512_load_si512(v + k * width + d + c * LANES);
                IN_REGISTER(x[c]);
            }
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int digit = 0; digit < 2; digit++) {
                    __m512i weight = repeat_codes(p + r * of_row + digit * of_digit + k * of_four);
#pragma GCC unroll 4
                    for (int c = 0; c < 4; c++) ADD_CODES(o[r][digit][c], weight, x[c]);
                }
        }
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(o[r][0][c], 8), o[r][1][c]);
                float *to_ = mixed + r * width + d + c * LANES;
                store(to_, fma_((vf)_mm512_cvtepi32_ps(sum), splat(scale[r]), load(to_) * splat(decay[r])));
            }
    }
}

static __attribute__((noinline)) void few_coded_rows(const rows_at *at, const attention_layer *layer, int64_t rows,
                                                     coded_queries q, int64_t begin, const place *here,
                                                     const place *next, const coded_tile *t, state s) {
    int64_t width = coded_width(layer->head_dim), first = here->from / 4, last = (here->to + 3) / 4;
    float p[FEW_ROWS * TILE], decay[FEW_ROWS], scale[FEW_ROWS];
    uint32_t weights[FEW_ROWS * TILE / 2];
    for (int64_t r = 0; r < rows; r += AT_ONCE) {
        const char *const *ahead = next && !r ? next->k : NULL;
        float *to = p + r * TILE;
        if (rows - r > 2) coded_scores(q, r, t, ahead, width, 4, to);
        else if (rows - r > 1) coded_scores(q, r, t, ahead, width, 2, to);
        else coded_scores(q, r, t, ahead, width, 1, to);
    }
    for (int64_t r = 0; r < rows; r++) {
        decay[r] = soften_row(at, layer, r, begin, 0, p + r * TILE, s);
        scale[r] = code_weights(p + r * TILE, t, (uint8_t *)(weights + r * (TILE / 2)));
    }
    int64_t r = 0;
#define MIX_CODES(n) mix_codes(s.mixed + r * width, weights + r * (TILE / 2), TILE / 2, TILE / 4, 1, decay + r, scale + r, \
                               t->values, first, last, width, n)
    for (; r + 2 <= rows; r += 2) MIX_CODES(2);
    if (r < rows) MIX_CODES(1);
#undef MIX_CODES
}

/* ── many rows ────────────────────────────────────────────────────────────────────────────────── */

/* Scores of `keys` keys from `key` on and 16 rows, to [key][MANY]. `ahead`: WISHES rows that are needed soon, or NULL. */
INLINE void turned_coded_scores(const uint32_t *q, const float *q_scale, const int32_t *moved, const coded_tile *t, int key,
                                const char *const *ahead, int64_t width, const int keys, float *out) {
    __m512i s[12][2];
    const uint32_t *k = t->keys + key;
#pragma GCC unroll 12
    for (int j = 0; j < keys; j++) s[j][0] = s[j][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < width / 4; i++, q += 2 * LANES, k += TILE) {
        if (ahead) __builtin_prefetch(ahead[i % WISHES] + i / WISHES * WIDE, 0, 2);
        __m512i high = _mm512_load_si512(q), low = _mm512_load_si512(q + LANES);
        IN_REGISTER(high);
        IN_REGISTER(low);
#pragma GCC unroll 12
        for (int j = 0; j < keys; j++) {
            __m512i x = repeat_codes(k + j);
            ADD_CODES(s[j][0], x, high);
            ADD_CODES(s[j][1], x, low);
        }
    }
    __m512i up = _mm512_loadu_si512(moved);
#pragma GCC unroll 12
    for (int j = 0; j < keys; j++)
        store(out + (key + j) * MANY, score_of(s[j][0], s[j][1], up, load(q_scale), splat(t->key_scales[key + j])));
}

/* Of the tile's first `keys` keys, or some more. */
static __attribute__((noinline)) void coded_scores_of_16(const uint32_t *q, const float *q_scale, const int32_t *moved,
                                                         const coded_tile *t, wishes *w, int64_t keys, int64_t width, float *out) {
    turned_coded_scores(q, q_scale, moved, t, 0, take(w), width, 12, out);
    if (keys > 12) turned_coded_scores(q, q_scale, moved, t, 12, take(w), width, 12, out);
    if (keys > 24) turned_coded_scores(q, q_scale, moved, t, 24, take(w), width, 8, out);
}

/* code_weights of 16 rows as lanes, to [four positions][digit][MANY]. */
static __attribute__((noinline)) void code_lanes(const float *p, const coded_tile *t, uint32_t *to, float *scale) {
    vf w[TILE];
    __m512i top = (__m512i)splat(LEAST_WEIGHT);
    for (int j = 0; j < TILE; j++) {
        w[j] = scaled_weight(load(p + j * MANY), splat(t->value_scales[j]));
        top = _mm512_max_epu32(top, (__m512i)w[j]);
    }
    vf factor = splat(P_LIMIT) / (vf)top;
    store(scale, (vf)top / splat(P_LIMIT));
    const __m512i even = _mm512_set1_epi16(0xff);
    for (int j = 0; j < TILE; j += 4, to += 2 * MANY) {
        __m512i c[4];
        for (int i = 0; i < 4; i++) c[i] = _mm512_cvtps_epi32((__m512)(w[j + i] * factor));
        __m512i a = _mm512_or_si512(c[0], _mm512_slli_epi32(c[2], 16)), b = _mm512_or_si512(c[1], _mm512_slli_epi32(c[3], 16));
        __m512i high = _mm512_or_si512(_mm512_srli_epi16(a, 8), _mm512_andnot_si512(even, b));
        __m512i low = _mm512_or_si512(_mm512_and_si512(a, even), _mm512_slli_epi16(b, 8));
        _mm512_storeu_si512(to, high), _mm512_storeu_si512(to + MANY, low);
    }
}

static __attribute__((noinline)) void mix_three_coded(float *mixed, const uint32_t *p, const float *decay, const float *scale,
                                                      const uint32_t *v, int64_t from, int64_t to, int64_t width) {
    mix_codes(mixed, p, 1, MANY, 2 * MANY, decay, scale, v, from, to, width, 3);
}

static __attribute__((noinline)) void mix_one_coded(float *mixed, const uint32_t *p, const float *decay, const float *scale,
                                                    const uint32_t *v, int64_t from, int64_t to, int64_t width) {
    mix_codes(mixed, p, 1, MANY, 2 * MANY, decay, scale, v, from, to, width, 1);
}

/* A block of up to MANY rows from `row` on, and what they see from … to - 1 of the span at `begin`. Into `total`, which is cleared or
 * `fresh`. */
static __attribute__((noinline)) void coded_block(const rows_at *at, const attention_layer *layer, int64_t row, int64_t rows,
                                                  coded_queries q, int64_t begin, int64_t from, int64_t to, const coded_tile *span,
                                                  int fresh, wishes *ahead, state total) {
    int64_t width = coded_width(layer->head_dim);
    float p[TILE * MANY] __attribute__((aligned(64))), part[MANY * MOST_CODED_DIM] __attribute__((aligned(64)));
    float decay[MANY], scale[MANY], level[MANY], sum[MANY], less[MANY], more[MANY];
    uint32_t weights[TILE / 2 * MANY] __attribute__((aligned(64)));
    float *all = total.mixed + row * width, *mixed = fresh ? all : part;
    for (int i = 0; i < MANY; i += LANES) store(level + i, splat(NOTHING)), store(sum + i, (vf){});
    memset(mixed, 0, sizeof(float) * (size_t)(rows * width));
    for (int64_t tile = from / TILE; tile * TILE < to; tile++) {
        const coded_tile *t = span + tile;
        int64_t first = most(from - tile * TILE, 0) / 4, end = least(to - tile * TILE, TILE), r = 0;
        for (int64_t i = 0; i < rows; i += LANES) {
            const uint32_t *digits = (const uint32_t *)q.digits + (row + i) * (width / 2);
            coded_scores_of_16(digits, q.scale + row + i, q.moved + row + i, t, ahead, end, width, p + i);
            soften_rows(at, layer, row + i, least(rows - i, LANES), begin + tile * TILE, p + i, level + i, sum + i, decay + i, NULL);
            code_lanes(p + i, t, weights + i, scale + i);
        }
#define MIX_ROWS(name) name(mixed + r * width, weights + r, decay + r, scale + r, t->values, first, (end + 3) / 4, width)
        for (; r + 3 <= rows; r += 3) MIX_ROWS(mix_three_coded);
        for (; r < rows; r++) MIX_ROWS(mix_one_coded);
#undef MIX_ROWS
    }
    for (int64_t i = 0; i < rows; i += LANES) join_lanes(total, row + i, rows - i, fresh, level + i, sum + i, less + i, more + i);
    for (int64_t r = 0; !fresh && r < rows; r++)
        for (int64_t d = r * width; d < (r + 1) * width; d += LANES)
            store(all + d, fma_(load(part + d), splat(more[r]), load(all + d) * splat(less[r])));
}

/* The tile of few rows. */
static __attribute__((noinline)) void tile_codes(const rows_at *at, const attention_layer *layer, int64_t num_rows,
                                                 const float *queries, int64_t begin, const place *here,
                                                 const place *next, state s) {
    coded_tile t __attribute__((aligned(64)));
    load_tile(layer, here, next, &t);
    few_coded_rows(at, layer, num_rows, coded_in(queries, FEW_ROWS), begin, here, next, &t, s);
}

#else
#define HAS_CODES 0
INLINE int can_code(const attention_layer *layer) { return layer == NULL; }
INLINE int64_t coded_width(int64_t dim) { return dim; }
#endif
