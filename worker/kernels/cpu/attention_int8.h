/* Keys and values of an int8 cache, unpacked tile by tile where they are not multiplied as they lie (attention_codes.h): queries in
 * float32, and processors without AVX512-VNNI. Code · scale, rounded to bf16 where queries are that, else float32. A tile's numbers stay in the first cache, so that memory is read once, at half of what bf16 takes. While a tile is
 * unpacked, the next is asked for.
 */
#pragma once
#include "attention_pairs.h"

enum { MOST_INT8_DIM = 256, PLAIN_BYTES = 2 * TILE * MOST_INT8_DIM * 4 };

INLINE int plain_type(const attention_layer *layer) { return layer->dtype == BF16 ? BF16 : F32; }

/* LANES codes. GCC 12 converts them one by one where it is not told how. */
INLINE vf codes(const int8_t *p) {
#if LANES == 16
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif LANES == 8
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return (vf){p[0], p[1], p[2], p[3]};
#endif
}

INLINE void unpack(const int8_t *from, float scale, int64_t dim, int dtype, char *to) {
    int64_t d = 0;
#if HAS_PAIRS
    for (; dtype == BF16 && d + CHUNK <= dim; d += CHUNK) {
        vf a = codes(from + d) * splat(scale), b = codes(from + d + LANES) * splat(scale);
        _mm512_storeu_si512(to + 2 * d, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
    }
#endif
    for (; d + LANES <= dim; d += LANES) store_some(to + d * size_of(dtype), dtype, LANES, codes(from + d) * splat(scale));
    int8_t last[LANES] = {};
    if (d == dim) return;
    memcpy(last, from + d, (size_t)(dim - d)); /* nothing behind them is read */
    store_some(to + d * size_of(dtype), dtype, dim - d, codes(last) * splat(scale));
}

/* `here` → `plain`, in `memory` of PLAIN_BYTES; `next`: the tile after it, or NULL. */
static __attribute__((noinline)) void unpack_tile(const attention_layer *layer, const place *here, const place *next, char *memory,
                                                  place *plain) {
    int dtype = plain_type(layer);
    int64_t dim = layer->head_dim, bytes = dim * size_of(dtype);
    char *values = memory + TILE * bytes;
    plain->from = here->from, plain->to = here->to;
    for (int64_t j = 0; j < TILE; j++) {
        int64_t from = j < here->from || j >= here->to ? here->from : j;
        plain->k[j] = memory + from * bytes, plain->v[j] = values + from * bytes;
    }
    for (int64_t j = here->from; j < here->to; j++) {
        for (int64_t line = 0; next && line < dim; line += 64)
            __builtin_prefetch(next->k[j] + line, 0, 2), __builtin_prefetch(next->v[j] + line, 0, 2);
        const int8_t *k = (const int8_t *)here->k[j], *v = (const int8_t *)here->v[j];
        float k_scale = layer->key_scales[here->row[j]], v_scale = layer->value_scales[here->row[j]];
        unpack(k, k_scale, dim, dtype, memory + j * bytes);
        unpack(v, v_scale, dim, dtype, values + j * bytes);
    }
}
