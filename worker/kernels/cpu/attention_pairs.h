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
    return !layer->key_scales && layer->dtype == BF16 && layer->head_dim % CHUNK == 0 && layer->head_dim <= MOST_PAIRED_DIM;
}

/* sum += a · b, by the instruction as it stands: with so many sums GCC 12 copies and spills them around its intrinsic. */
#define ADD_PAIRS(sum, a, b) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
INLINE vi load_pairs(const void *p) { return (vi)_mm512_loadu_si512(p); }
INLINE vi repeat(const uint32_t *both) {
    vi all;
    __asm__("vpbroadcastd %1, %0" : "=v"(all) : "m"(*both));
    return all;
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
        decay[r] = soften_row(at, layer, r, begin, 1, p + r * TILE, s);
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

/* The tile of few rows. */
static __attribute__((noinline)) void tile_pairs(const rows_at *at, const attention_layer *layer, int64_t num_rows, const float *q,
        int64_t begin, const place *here, const place *next, state s) {
    uint32_t k[TILE / 2 * MOST_PAIRED_DIM] __attribute__((aligned(64)));
    uint32_t v[TILE / 2 * MOST_PAIRED_DIM] __attribute__((aligned(64)));
    turn_keys(here, layer->head_dim, k);
    pair_values(here, layer->head_dim, v);
    few_rows(at, layer, num_rows, (const uint32_t *)q, begin, here, next, k, v, s);
}

/* ── many rows ────────────────────────────────────────────────────────────────────────────────── */

/* Up to 16 rows' numbers, rows[i] NULL beyond them, → [pair of dims][MANY], at 16 of MANY rows */
INLINE void turn_queries(const char *const *rows, int64_t dim, uint32_t *to) {
    for (int64_t d = 0; d < dim; d += CHUNK) {
        __m512i x[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) x[i] = rows[i] ? _mm512_loadu_si512(rows[i] + 2 * d) : _mm512_setzero_si512();
        transpose16(x);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + (d / 2 + i) * MANY, x[i]);
    }
}

/* Scores of `keys` keys and `vectors` · 16 rows, to [key][MANY rows]. `ahead`: WISHES rows that are needed soon, or NULL. Sums want all registers: functions of their own. */
INLINE void turned_scores(const uint32_t *q, const uint32_t *k, const char *const *ahead, int64_t dim, const int keys, const int vectors,
                          float *out) {
    vf s[16][2];
#pragma GCC unroll 16
    for (int j = 0; j < keys; j++) s[j][0] = s[j][1] = (vf){};
    for (int64_t p = 0; p < dim / 2; p++, q += MANY, k += TILE) {
        if (ahead) __builtin_prefetch(ahead[p % WISHES] + p / WISHES * 64, 0, 2);
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

/* Of the tile's first `keys` keys, or some more. */
static __attribute__((noinline)) void scores_of_32(const uint32_t *q, const uint32_t *k, wishes *w, int64_t dim, int64_t keys, float *out) {
    turned_scores(q, k, take(w), dim, 12, 2, out);
    if (keys > 12) turned_scores(q, k + 12, take(w), dim, 12, 2, out + 12 * MANY);
    if (keys > 24) turned_scores(q, k + 24, take(w), dim, 8, 2, out + 24 * MANY);
}

static __attribute__((noinline)) void scores_of_16(const uint32_t *q, const uint32_t *k, wishes *w, int64_t dim, int64_t keys, float *out) {
    turned_scores(q, k, take(w), dim, 16, 1, out);
    if (keys > 16) turned_scores(q, k + 16, take(w), dim, 16, 1, out + 16 * MANY);
}

/* Weights of a block of rows and a span. */
typedef struct {
    uint32_t pairs[TILES][TILE / 2 * MANY] __attribute__((aligned(64)));
    float decay[TILES][MANY] __attribute__((aligned(64)));
    uint32_t changed[TILES]; /* rows whose decay is not 1 */
    int64_t from, to;        /* positions that are seen, in the span */
} span_weights;

/* mixed = Σ p v [of the span] · more + mixed · less, sums in registers; `less` NULL: mixed is new. */
INLINE void mix_span(const span_weights *w, int64_t row, const uint32_t *v, int64_t dim, int64_t d, const float *less, const float *more,
                     float *mixed, const int rows, const int vectors) {
    vf o[6][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) o[r][c] = (vf){};
    for (int64_t tile = w->from / TILE; tile * TILE < w->to; tile++) {
        if (w->changed[tile] >> row & ((1u << rows) - 1))
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int c = 0; c < vectors; c++) o[r][c] = o[r][c] * splat(w->decay[tile][row + r]);
        int64_t first = most(w->from - tile * TILE, 0) / 2, end = (least(w->to - tile * TILE, TILE) + 1) / 2;
        const uint32_t *p = w->pairs[tile] + row + first * MANY, *x = v + (tile * (TILE / 2) + first) * dim + d;
        for (int64_t k = first; k < end; k++, p += MANY, x += dim) {
            vi values[4];
#pragma GCC unroll 4
            for (int c = 0; c < vectors; c++) {
                values[c] = load_pairs(x + c * LANES);
                IN_REGISTER(values[c]);
            }
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                vi weight = repeat(p + r);
#pragma GCC unroll 4
                for (int c = 0; c < vectors; c++) ADD_PAIRS(o[r][c], weight, values[c]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) {
            float *to = mixed + r * dim + d + c * LANES;
            store(to, less ? fma_(o[r][c], splat(more[r]), load(to) * splat(less[r])) : o[r][c]);
        }
}

#define MIX_SPAN(name, rows)                                                                                                      \
    static __attribute__((noinline)) void name(const span_weights *w, int64_t row, const uint32_t *v, int64_t dim, const float *less, \
                                               const float *more, float *mixed) {                                                 \
        int64_t d = 0;                                                                                                            \
        for (; d + 4 * LANES <= dim; d += 4 * LANES) mix_span(w, row, v, dim, d, less, more, mixed, rows, 4);                     \
        for (; d < dim; d += CHUNK) mix_span(w, row, v, dim, d, less, more, mixed, rows, 2);                                      \
    }
MIX_SPAN(mix_six, 6)
MIX_SPAN(mix_two, 2)
MIX_SPAN(mix_one, 1)

/* Keys and values of a span: [tile][pair of dims][TILE], [pair of positions][dim] */
typedef struct { uint32_t keys[SPAN / 2 * MOST_PAIRED_DIM], values[SPAN / 2 * MOST_PAIRED_DIM]; } paired_span;

INLINE void pair_tile(const place *here, int64_t dim, int64_t tile, paired_span *to) {
    turn_keys(here, dim, to->keys + tile * (TILE / 2) * dim);
    pair_values(here, dim, to->values + tile * (TILE / 2) * dim);
}

/* A block of up to MANY rows from `row` on, and what they see from … to - 1 of the span at `begin`. Into `total`, which is cleared or
 * `fresh`. */
static __attribute__((noinline)) void paired_block(const rows_at *at, const attention_layer *layer, int64_t row, int64_t rows,
                                                   const uint32_t *q, int64_t begin, int64_t from, int64_t to, const paired_span *span,
                                                   int fresh, wishes *ahead, state total) {
    int64_t dim = layer->head_dim;
    float scores[TILE * MANY] __attribute__((aligned(64)));
    float level[MANY], sum[MANY], less[MANY], more[MANY];
    span_weights w;
    w.from = from, w.to = to;
    for (int i = 0; i < MANY; i += LANES) store(level + i, splat(NOTHING)), store(sum + i, (vf){});
    for (int64_t tile = from / TILE; tile * TILE < to; tile++) {
        int64_t end = least(to - tile * TILE, TILE);
        (rows > LANES ? scores_of_32 : scores_of_16)(q, span->keys + tile * (TILE / 2) * dim, ahead, dim, end, scores);
        w.changed[tile] = 0;
        for (int64_t i = 0; i < rows; i += LANES)
            w.changed[tile] |= soften_rows(at, layer, row + i, least(rows - i, LANES), begin + tile * TILE, scores + i, level + i, sum + i,
                                           w.decay[tile] + i, w.pairs[tile] + i) << i;
        if (tile == from / TILE) w.changed[tile] = 0; /* nothing decays yet */
    }
    for (int64_t i = 0; i < rows; i += LANES) join_lanes(total, row + i, rows - i, fresh, level + i, sum + i, less + i, more + i);
    int64_t r = 0;
#define MIX_ROWS(name) name(&w, r, span->values, dim, fresh ? NULL : less + r, more + r, total.mixed + (row + r) * dim)
    for (; r + 6 <= rows; r += 6) MIX_ROWS(mix_six);
    for (; r + 2 <= rows; r += 2) MIX_ROWS(mix_two);
    if (r < rows) MIX_ROWS(mix_one);
#undef MIX_ROWS
}

#else
#define HAS_PAIRS 0
INLINE int can_pair(const attention_layer *layer) { return layer == NULL; }
#define tile_pairs tile_bf16
#endif
