/* One tile of attention: up to TILE positions of one sequence and KV head, for the rows (token, head of the group)
 * that share them. Everything is widened to float32 when it is read; what multiplies bf16 as it is stands in
 * attention_pairs.h. */
#pragma once
#include "attention.h"
#include "lanes.h"

enum { TILE = 32, SPAN = 256, TILES = SPAN / TILE, MAX_ROWS = 64, MAX_FLOATS = 8192 };
/* Up to so many rows memory is what limits. So while a tile is computed, line by line the next is asked for, into
 * the second cache; behind a head's last tile comes the first of the next head. */
enum { FEW_ROWS = 8, MOST_HEADS = 4, HEAD_FLOATS = MAX_FLOATS / MOST_HEADS };
#define NOTHING (-1e30f) /* less than any score, and finite */

/* Weights are 2^(score · log2 e - level). A row's level is an integer, so that sums move from one to another exactly, and it rises
 * only where a weight would be more than 2^SLACK: behind the first tile that is rare. */
#define SLACK 8.0f
#define LOG2_E 1.44269504088896341

/* Rows' level, sum of weights and mixed values. */
typedef struct { float *level, *sum, *mixed; } state;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t padded(int64_t dim) { return (dim + CHUNK - 1) / CHUNK * CHUNK; }

/* Ask for the memory of a chunk of numbers. */
INLINE void ask(const char *p, int dtype) {
    for (int64_t line = 0; line < CHUNK * size_of(dtype); line += 64) __builtin_prefetch(p + line, 0, 2);
}

/* Scores of `rows` queries and LANES / rows keys. `ahead`: keys that are needed next, or NULL. */
INLINE void dots(const float *q, int64_t width, const char *const *k, const char *const *ahead, int dtype, int64_t dim,
                 int rows, float *out) {
    const int keys = LANES / rows;
    vf s[LANES];
    for (int i = 0; i < LANES; i++) s[i] = (vf){};
    int64_t whole = dim / CHUNK * CHUNK;
    for (int64_t d = 0; d < whole; d += CHUNK) {
#pragma GCC unroll 16
        for (int j = 0; j < keys; j++) {
            if (ahead) ask(ahead[j] + d * size_of(dtype), dtype);
            pair x = load_pair(k[j] + d * size_of(dtype), dtype, CHUNK);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                vf *sum = &s[r * keys + j];
                *sum = fma_(load(q + r * width + d), x.a, *sum);
                *sum = fma_(load(q + r * width + d + LANES), x.b, *sum);
            }
        }
    }
    if (whole < dim) {
#pragma GCC unroll 16
        for (int j = 0; j < keys; j++) {
            pair x = load_pair(k[j] + whole * size_of(dtype), dtype, (int)(dim - whole));
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                vf *sum = &s[r * keys + j];
                *sum = fma_(load(q + r * width + whole), x.a, *sum);
                *sum = fma_(load(q + r * width + whole + LANES), x.b, *sum);
            }
        }
    }
    float flat[LANES];
    store(flat, sums(s));
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) memcpy(out + r * TILE, flat + r * keys, sizeof(float) * (size_t)keys);
}

/* mixed = mixed · decay + Σ p v, of `rows` rows and `chunks` chunks of a head. */
INLINE void mix(float *mixed, int64_t width, const float *p, const float *decay, const char *const *v,
                const char *const *ahead, int64_t from, int64_t to, int dtype, int count, int rows, int chunks) {
    vf o[16];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < 2 * chunks; c++) o[r * 2 * chunks + c] = load(mixed + r * width + c * LANES) * splat(decay[r]);
    for (int64_t k = from; k < to; k++)
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++) {
            if (ahead) ask(ahead[k] + c * CHUNK * size_of(dtype), dtype);
            pair x = load_pair(v[k] + c * CHUNK * size_of(dtype), dtype, count);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                vf *sum = &o[(r * chunks + c) * 2], weight = splat(p[r * TILE + k]);
                sum[0] = fma_(weight, x.a, sum[0]);
                sum[1] = fma_(weight, x.b, sum[1]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < 2 * chunks; c++) store(mixed + r * width + c * LANES, o[r * 2 * chunks + c]);
}

INLINE void mix_heads(float *mixed, int64_t width, const float *p, const float *decay, const char *const *values,
                      const char *const *next, int64_t from, int64_t to, int dtype, int64_t dim, int rows) {
    const int at_once = LANES == 8 ? 4 / rows : rows == 4 ? 2 : 4;
    const char *v[TILE], *n[TILE], *const *ahead = next ? n : NULL;
    for (int64_t k = from; k < to; k++) v[k] = values[k], n[k] = (next ? next : values)[k];
    int64_t d = 0, bytes = size_of(dtype) * CHUNK;
#define ADVANCE(i) for (int64_t k = from; k < to; k++) v[k] += (i) * bytes, n[k] += (i) * bytes; d += (i) * CHUNK
    while (d + at_once * CHUNK <= dim) {
        mix(mixed + d, width, p, decay, v, ahead, from, to, dtype, CHUNK, rows, at_once);
        ADVANCE(at_once);
    }
    while (d + CHUNK <= dim) {
        mix(mixed + d, width, p, decay, v, ahead, from, to, dtype, CHUNK, rows, 1);
        ADVANCE(1);
    }
    if (d < dim) mix(mixed + d, width, p, decay, v, ahead, from, to, dtype, (int)(dim - d), rows, 1);
}

/* What scores (or capped ones) are multiplied with. */
INLINE float bits_in(const attention_layer *layer) { return (float)(layer->soft_cap != 0 ? LOG2_E : layer->scale * LOG2_E); }

INLINE vf capped(vf scores, const attention_layer *layer) {
    return tanh_(scores * splat((float)(layer->scale / layer->soft_cap))) * splat((float)layer->soft_cap);
}

/* Scores of a row → weights in place, which are rounded to bfloat16 if they are multiplied as that: a sum is of what is multiplied.
 * Returns what the earlier sums are multiplied with. */
INLINE float soften(float *scores, int64_t from, int64_t to, const attention_layer *layer, const int round, float *level, float *sum) {
    vf s[TILE / LANES], top = splat(NOTHING);
    vi index;
    for (int i = 0; i < LANES; i++) index[i] = i;
    vi seen[TILE / LANES];
#pragma GCC unroll 8
    for (int i = 0; i < TILE / LANES; i++) {
        vi place = index + i * LANES;
        seen[i] = (place >= (int32_t)from) & (place < (int32_t)to);
        vf x = load(scores + i * LANES);
        if (layer->soft_cap != 0) x = capped(x, layer);
        s[i] = select_(seen[i], x, splat(NOTHING));
        top = larger(s[i], top);
    }
    float bits = bits_in(layer), before = *level, now = ceilf(largest_of(top) * bits);
    now = now > before + SLACK ? now : before;
    vf total = (vf){};
#pragma GCC unroll 8
    for (int i = 0; i < TILE / LANES; i++) {
        vf p = select_(seen[i], exp2_(fma_(s[i], splat(bits), splat(-now))), (vf){});
        if (round) p = (vf)bf16_bits(p);
        store(scores + i * LANES, p);
        total = total + p;
    }
    float decay = now == before ? 1 : exp2_(splat(before - now))[0];
    *sum = *sum * decay + sum_of(total);
    *level = now;
    return decay;
}

/* Rows' positions, as seen from one tile. */
typedef struct { int64_t first_row, group, first_position, window; } rows_at;

INLINE int64_t position_of(const rows_at *at, int64_t row) { return at->first_position + (at->first_row + row) / at->group; }

/* soften, of a row and the tile at `begin`: a row sees no position behind its own, and none before its window. */
INLINE float soften_row(const rows_at *at, const attention_layer *layer, int64_t row, int64_t begin, const int round, float *scores,
                        state s) {
    int64_t end = position_of(at, row) + 1, start = at->window ? most(end - at->window, 0) : 0;
    return soften(scores, most(start - begin, 0), least(end - begin, TILE), layer, round, &s.level[row],
                  &s.sum[row]);
}

/* Where keys and values are, of the positions from … to - 1 of a tile; the rest of them point to some of these. `row`:
 * of each, in the cache seen as [all, dim]. */
typedef struct { int64_t from, to; const char *k[TILE], *v[TILE]; int64_t row[TILE]; } place;

INLINE void tile(const rows_at *at, const attention_layer *layer, int dtype, int64_t num_rows, const float *q, int64_t begin,
                 const place *here, const place *next, state s) {
    const char *const *k = here->k, *const *v = here->v;
    int64_t from = here->from, to = here->to;
    int64_t width = padded(layer->head_dim), dim = layer->head_dim;
    float p[4 * TILE], decay[4];
    for (int64_t row = 0; row < num_rows;) {
        int rows = num_rows - row >= 4 ? 4 : num_rows - row >= 2 ? 2 : 1;
        const float *queries = q + row * width;
        const char *const *next_k = next && !row ? next->k : NULL, *const *next_v = next && !row ? next->v : NULL;
#define SCORES(n) for (int64_t j = from / (LANES / n) * (LANES / n); j < to; j += LANES / n) \
            dots(queries, width, k + j, next_k ? next_k + j : NULL, dtype, dim, n, p + j)
        if (rows == 4) { SCORES(4); } else if (rows == 2) { SCORES(2); } else { SCORES(1); }
        for (int r = 0; r < rows; r++) decay[r] = soften_row(at, layer, row + r, begin, 0, p + r * TILE, s);
        float *mixed = s.mixed + row * width;
#define MIX(n) mix_heads(mixed, width, p, decay, v, next_v, from, to, dtype, dim, n)
        if (rows == 4) { MIX(4); } else if (rows == 2) { MIX(2); } else { MIX(1); }
        row += rows;
    }
}

static __attribute__((noinline)) void tile_f32(const rows_at *at, const attention_layer *layer, int64_t n, const float *q,
        int64_t begin, const place *here, const place *next, state s) {
    tile(at, layer, F32, n, q, begin, here, next, s);
}
static __attribute__((noinline)) void tile_bf16(const rows_at *at, const attention_layer *layer, int64_t n, const float *q,
        int64_t begin, const place *here, const place *next, state s) {
    tile(at, layer, BF16, n, q, begin, here, next, s);
}
static __attribute__((noinline)) void tile_f16(const rows_at *at, const attention_layer *layer, int64_t n, const float *q,
        int64_t begin, const place *here, const place *next, state s) {
    tile(at, layer, F16, n, q, begin, here, next, s);
}
