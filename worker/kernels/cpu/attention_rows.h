/* Softmax of a tile with rows as lanes: 16 rows at once, without horizontal sums, to the bits of `soften`. AVX-512 only. */
#pragma once
#include "attention_tile.h"

enum { MANY = 32 }; /* rows of a block: scores are [key][MANY] */

#if LANES == 16
/* Rows of memory that are needed soon: each product of scores asks for WISHES of them, line by line, into the second cache. */
enum { WISHES = 16, MOST_WISHES = 2048 };
typedef struct { int64_t count, done; const char *at[MOST_WISHES]; } wishes;

INLINE void wish(wishes *w, const char *row) {
    if (w->count < MOST_WISHES) w->at[w->count++] = row;
}

INLINE const char *const *take(wishes *w) {
    if (w->count - w->done < WISHES) return NULL;
    w->done += WISHES;
    return w->at + w->done - WISHES;
}

/* Of LANES rows the first key that is seen, and the end. */
typedef struct { vi from, to; } sight;

INLINE vf seen_of(sight seen, int key, vf yes, vf no) { return select_((seen.from <= key) & (seen.to > key), yes, no); }

/* Of two vectors of weights (rounded to bfloat16) each lane's pair. */
INLINE vi paired_weights(vf even, vf odd) {
#ifdef __AVX512BF16__
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                           18, 2, 17, 1, 16, 0);
    return (vi)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
    return bf16_bits(odd) | ((bf16_bits(even) >> 16) & 0xffff);
#endif
}

/* soften of LANES rows. Weights replace scores, or go to pairs[pair of keys][MANY] unless that is NULL. `decay`: what the earlier sums
 * are multiplied with. Returns the rows of which that is not 1. */
INLINE uint32_t soften_lanes(float *scores, const attention_layer *layer, const int all, sight seen, float *level_, float *sum_,
                             float *decay, uint32_t *pairs) {
    vf bits = splat(bits_in(layer)), top = splat(NOTHING), t[LANES];
    for (int j = 0; j < TILE && layer->soft_cap != 0; j++) store(scores + j * MANY, capped(load(scores + j * MANY), layer));
    for (int j = 0; j < TILE; j++) {
        vf x = load(scores + j * MANY);
        if (!all) store(scores + j * MANY, x = seen_of(seen, j, x, splat(NOTHING)));
        top = larger(x, top);
    }
    vf before = load(level_), now = (vf)_mm512_ceil_ps((__m512)(top * bits)), less = splat(1);
    now = select_(now > before + splat(SLACK), now, before);
    for (int j = 0; j < LANES; j += 2) {
        vf p[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            int key = j + i % 2 + i / 2 * LANES;
            p[i] = exp2_(fma_(load(scores + key * MANY), bits, -now));
            if (!all) p[i] = seen_of(seen, key, p[i], (vf){});
            if (!pairs) store(scores + key * MANY, p[i]);
        }
        if (pairs) {
            vi low = paired_weights(p[0], p[1]), high = paired_weights(p[2], p[3]);
            _mm512_storeu_si512(pairs + j / 2 * MANY, (__m512i)low), _mm512_storeu_si512(pairs + (j + LANES) / 2 * MANY, (__m512i)high);
            p[0] = (vf)(low << 16), p[1] = (vf)(low & (int32_t)0xffff0000);
            p[2] = (vf)(high << 16), p[3] = (vf)(high & (int32_t)0xffff0000);
        }
        t[j] = p[0] + p[2], t[j + 1] = p[1] + p[3];
    }
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) t[j] = t[j] + t[j + half];
    uint32_t changed = _mm512_cmp_ps_mask((__m512)now, (__m512)before, _CMP_NEQ_UQ);
    if (changed) less = select_(now != before, exp2_(before - now), less);
    store(level_, now), store(sum_, load(sum_) * less + t[0]), store(decay, less);
    return changed;
}

static __attribute__((noinline)) uint32_t soften_all(float *scores, const attention_layer *layer, float *level, float *sum, float *decay,
                                                     uint32_t *pairs) {
    return pairs ? soften_lanes(scores, layer, 1, (sight){}, level, sum, decay, pairs)
                 : soften_lanes(scores, layer, 1, (sight){}, level, sum, decay, NULL);
}
static __attribute__((noinline)) uint32_t soften_seen(float *scores, const attention_layer *layer, sight seen, float *level, float *sum,
                                                      float *decay, uint32_t *pairs) {
    return soften_lanes(scores, layer, 0, seen, level, sum, decay, pairs);
}

/* The same, of up to LANES rows from `row` on, as seen from the tile at `begin`. Lanes without a row are the last one's. */
INLINE uint32_t soften_rows(const rows_at *at, const attention_layer *layer, int64_t row, int64_t rows, int64_t begin, float *scores,
                            float *level, float *sum, float *decay, uint32_t *pairs) {
    int64_t lowest = position_of(at, row), highest = position_of(at, row + rows - 1);
    if (lowest + 1 >= begin + TILE && (!at->window || highest + 1 - at->window <= begin))
        return soften_all(scores, layer, level, sum, decay, pairs);
    sight seen;
    for (int j = 0; j < LANES; j++) {
        int64_t end = position_of(at, row + least(j, rows - 1)) + 1, start = at->window ? most(end - at->window, 0) : 0;
        seen.from[j] = (int32_t)most(start - begin, 0), seen.to[j] = (int32_t)least(most(end - begin, 0), TILE);
    }
    return soften_seen(scores, layer, seen, level, sum, decay, pairs);
}

/* total ⊕= (level, sum), of up to LANES rows from `row` on. What is mixed of them is to be multiplied with `less` and `more`. */
INLINE void join_lanes(state total, int64_t row, int64_t rows, int fresh, const float *level, const float *sum, float *less, float *more) {
    __mmask16 some = first((int)rows);
    vf before = fresh ? splat(NOTHING) : (vf)_mm512_maskz_loadu_ps(some, total.level + row), now = larger(before, load(level));
    vf a = exp2_(before - now), b = exp2_(load(level) - now);
    vf all = load(sum);
    if (!fresh) all = (vf)_mm512_maskz_loadu_ps(some, total.sum + row) * a + all * b;
    _mm512_mask_storeu_ps(total.level + row, some, (__m512)now), _mm512_mask_storeu_ps(total.sum + row, some, (__m512)all);
    store(less, a), store(more, b);
}
#endif
