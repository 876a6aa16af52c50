/* Before attention: norms of query and key heads, rotation, and this step's keys and values into their blocks.
 *
 *     qkv [token, heads + 2 · kv heads, dim]    queries stay, normed and rotated in place
 *                                               keys, values → their sequence's block, at their position
 *
 * Everything is computed in float32 and rounded once, when it is stored.
 */
#include "attention.h"
#include "elementwise.h"

enum { MAX_DIM = 1024 };

typedef struct {
    const attention_layer *layer;
    const attention_step *step;
    char *qkv;
    const char *cos, *sin; /* [token, rotary_dim] of rows rotary_stride apart; sines with their signs */
    int64_t rotary_stride;
} work;

/* Σ x² of the head at `row` */
INLINE float squares_of(const char *row, int dtype, int64_t dim) {
    vf squares = (vf){};
    for (int64_t d = 0; d < dim; d += LANES) {
        vf x = load_some(row + d * size_of(dtype), dtype, dim - d < LANES ? dim - d : LANES);
        squares = fma_(x, x, squares);
    }
    return sum_of(squares);
}

/* 1 / sqrt(mean(x²) + eps) of `count` heads from `row` on. Roots and quotients of several are taken at once: one by one they would be
 * waited for. */
INLINE void norm_factors(const char *row, int dtype, int64_t dim, int64_t count, double eps, float *factors) {
    for (int64_t head = 0; head < count; head++) factors[head] = squares_of(row + head * dim * size_of(dtype), dtype, dim);
    for (int64_t head = 0; head < count; head++) factors[head] = (float)(1.0 / sqrt((double)factors[head] / (double)dim + eps));
}

/* (a, b) → (a cos - b sin, b cos + a sin); `sin` holds the sines' signs. */
static void rotate(float *restrict x, int64_t dim, const float *restrict cos, const float *restrict sin) {
    int64_t half = dim / 2;
    for (int64_t d = 0; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = a * cos[d] + b * sin[d];
        x[d + half] = b * cos[d + half] + a * sin[d + half];
    }
}

INLINE vf floor_(vf x) {
#if LANES == 16
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    for (int i = 0; i < LANES; i++) x[i] = floorf(x[i]);
    return x;
#endif
}

/* At most LANES whole numbers. */
INLINE void store_codes(vf codes, int8_t *to, int64_t count) {
#if LANES == 16
    _mm512_mask_cvtepi32_storeu_epi8(to, first((int)(count < LANES ? count : LANES)), _mm512_cvtps_epi32((__m512)codes));
#else
    for (int i = 0; i < LANES && i < count; i++) to[i] = (int8_t)codes[i];
#endif
}

/* x, with zeros behind it → codes; the scale is returned, and is not finite where x is not. As paged_kv.py, to the bit. */
static float quantize(const float *x, int64_t dim, int8_t *to) {
    vi sizes = (vi)splat(1e-8f);
    for (int64_t d = 0; d < dim; d += LANES) sizes = larger_size(sizes, load(x + d));
    float scale = largest_size(sizes) / 127;
    if (!(scale < INFINITY)) {
        memset(to, 0, (size_t)dim);
        return scale;
    }
    for (int64_t d = 0; d < dim; d += LANES) {
        vf code = smaller(splat(127), larger(splat(-127), floor_(load(x + d) / splat(scale) + splat(0.5f))));
        store_codes(code, to + d, dim - d);
    }
    return scale;
}

static void prepare_token(const work *w, int64_t token, const float *q_norm, const float *k_norm) {
    const attention_layer *layer = w->layer;
    const attention_step *step = w->step;
    int dtype = (int)layer->dtype;
    int64_t dim = layer->head_dim, heads = layer->num_heads, kv_heads = layer->num_kv_heads;
    int64_t bytes = dim * size_of(dtype), position = step->positions[token], rotary = layer->rotary_dim;
    float x[MAX_DIM + CHUNK] __attribute__((aligned(64)));
    float cos[MAX_DIM + CHUNK] __attribute__((aligned(64))), sin[MAX_DIM + CHUNK] __attribute__((aligned(64)));
    if (rotary) {
        int64_t at = token * w->rotary_stride * size_of(dtype);
        widen(w->cos + at, dtype, rotary, cos);
        widen(w->sin + at, dtype, rotary, sin);
    }
    const int32_t *blocks = step->block_tables + step->token_rows[token] * step->table_stride;
    int64_t place = position % layer->block_size;
    int64_t block = (int64_t)blocks[position / layer->block_size] * kv_heads;
    char *row = w->qkv + token * (heads + 2 * kv_heads) * bytes;
    float factors[heads + kv_heads];
    if (q_norm || k_norm) norm_factors(row, dtype, dim, heads + kv_heads, layer->norm_eps, factors);
    for (int64_t head = 0; head < heads + kv_heads; head++, row += bytes) {
        int is_key = head >= heads, rounds = is_key && layer->key_scales;
        int64_t slot = (block + head - heads) * layer->block_size + place;
        char *to = is_key ? layer->keys + slot * bytes : row;
        const float *weight = is_key ? k_norm : q_norm;
        if (weight || rotary || rounds) {
            widen(row, dtype, dim, x);
            for (int64_t d = 0; weight && d < dim; d++) x[d] = x[d] * factors[head] * weight[d];
            if (rotary) rotate(x, rotary, cos, sin);
            if (rounds)
                layer->key_scales[slot] = quantize(x, dim, (int8_t *)layer->keys + slot * dim);
            else
                narrow(x, dtype, dim, to);
        } else if (is_key) {
            memcpy(to, row, (size_t)bytes);
        }
    }
    for (int64_t head = 0; head < kv_heads; head++, row += bytes) {
        int64_t slot = (block + head) * layer->block_size + place;
        if (layer->value_scales) {
            widen(row, dtype, dim, x);
            layer->value_scales[slot] = quantize(x, dim, (int8_t *)layer->values + slot * dim);
        } else {
            memcpy(layer->values + slot * bytes, row, (size_t)bytes);
        }
    }
}

static int64_t tokens_at_once(const work *w) {
    int64_t count = LEAST_WORK / ((w->layer->num_heads + 2 * w->layer->num_kv_heads) * w->layer->head_dim);
    return count > 0 ? count : 1;
}

static void prepare(const void *argument, long index) {
    const work *w = argument;
    const attention_layer *layer = w->layer;
    float q_weight[MAX_DIM + CHUNK], k_weight[MAX_DIM + CHUNK];
    if (layer->q_norm) widen(layer->q_norm, (int)layer->norm_dtype, layer->head_dim, q_weight);
    if (layer->k_norm) widen(layer->k_norm, (int)layer->norm_dtype, layer->head_dim, k_weight);
    int64_t each = tokens_at_once(w), end = (index + 1) * each;
    if (end > w->step->num_tokens) end = w->step->num_tokens;
    for (int64_t token = index * each; token < end; token++)
        prepare_token(w, token, layer->q_norm ? q_weight : NULL, layer->k_norm ? k_weight : NULL);
}

/* Writes the step's keys and values, then attends. qkv as above; cos, sin [token, rotary_dim], rows rotary_stride
 * apart, the sines with their signs; out [token, head, dim]. Returns 0, -1 without memory. */
int tern_write_kv_and_attend(const attention_layer *layer, const attention_step *step, void *qkv, const void *cos,
                             const void *sin, int64_t rotary_stride, void *out) {
    work w = {layer, step, qkv, cos, sin, rotary_stride};
    int64_t each = tokens_at_once(&w);
    tern_parallel_for(prepare, &w, (long)((step->num_tokens + each - 1) / each));
    return tern_attend(layer, step, qkv, layer->num_heads + 2 * layer->num_kv_heads, out);
}
