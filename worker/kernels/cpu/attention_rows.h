/* Softmax of a tile with rows as lanes: 16 rows at once, without horizontal sums, to the bits of `soften`. AVX-512 only. */
#pragma once
#include "attention_tile.h"

#if LANES == 16
enum { MANY = 32 }; /* rows of a block: scores are [key][MANY] */

/* soften of up to 16 rows from `row` on. `seen`: of each row the first key and the end, or NULL: all. `decay`: what the
 * earlier sums are multiplied with. */
static __attribute__((noinline)) void soften_lanes(float *scores, const attention_layer *layer, const vi *seen, int64_t row,
                                                   int64_t rows, state s, float *decay) {
    __mmask16 some = first((int)rows);
    vf top = splat(NOTHING), soft_cap = splat((float)layer->soft_cap);
    for (int j = 0; j < TILE; j++) {
        vf x = load(scores + j * MANY) * splat((float)layer->scale);
        if (layer->soft_cap != 0) x = tanh_(x / soft_cap) * soft_cap;
        if (seen) x = select_((seen[0] <= j) & (seen[1] > j), x, splat(NOTHING));
        top = larger(x, top);
        store(scores + j * MANY, x);
    }
    vf before = (vf)_mm512_maskz_loadu_ps(some, s.max + row), now = select_(top > before, top, before), t[LANES];
#pragma GCC unroll 2
    for (int j = 0; j < TILE; j++) {
        vf p = exp_(load(scores + j * MANY) - now);
        if (seen) p = select_((seen[0] <= j) & (seen[1] > j), p, (vf){});
        store(scores + j * MANY, p);
    }
    for (int j = 0; j < LANES; j++) t[j] = load(scores + j * MANY) + load(scores + (j + LANES) * MANY);
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) t[j] = t[j] + t[j + half];
    vf less = exp_(before - now), sum = (vf)_mm512_maskz_loadu_ps(some, s.sum + row) * less + t[0];
    _mm512_mask_storeu_ps(s.max + row, some, (__m512)now);
    _mm512_mask_storeu_ps(s.sum + row, some, (__m512)sum);
    store(decay, less);
}

/* The same, of rows as seen from the tile at `begin`. */
INLINE void soften_rows(const rows_at *at, const attention_layer *layer, int64_t row, int64_t rows, int64_t begin, float *scores,
                        state s, float *decay) {
    int64_t lowest = position_of(at, row), highest = position_of(at, row + rows - 1);
    int all = lowest + 1 >= begin + TILE && (!at->window || highest + 1 - at->window <= begin);
    vi seen[2] = {};
    for (int j = 0; j < LANES && !all; j++) {
        int64_t end = position_of(at, row + least(j, rows - 1)) + 1, start = at->window ? most(end - at->window, 0) : 0;
        seen[0][j] = (int32_t)most(start - begin, 0), seen[1][j] = (int32_t)least(most(end - begin, 0), TILE);
    }
    soften_lanes(scores, layer, all ? NULL : seen, row, rows, s, decay);
}
#endif
