/* Rows of numbers of any of the three types, and loops over rows. */
#pragma once
#include "pool.h"
#include "lanes.h"

enum { LEAST_WORK = 16384 }; /* numbers in a chunk of a job: about 2 µs, less than waking a thread is worth */

/* p's `count` numbers as float32, and zeros up to a multiple of CHUNK. */
INLINE void widen(const void *p, int dtype, int64_t count, float *out) {
    if (dtype == F32) {
        memcpy(out, p, sizeof(float) * (size_t)count);
    } else if (dtype == BF16) {
        const uint16_t *x = p;
        for (int64_t i = 0; i < count; i++) out[i] = bf16_to_float(x[i]);
    } else {
        for (int64_t i = 0; i < count; i += CHUNK) {
            pair v = load_pair((const char *)p + 2 * i, F16, count - i < CHUNK ? (int)(count - i) : CHUNK);
            store(out + i, v.a), store(out + i + LANES, v.b);
        }
    }
    for (int64_t i = count; i % CHUNK; i++) out[i] = 0;
}

INLINE void narrow(const float *x, int dtype, int64_t count, void *p) {
    if (dtype == F32) {
        memcpy(p, x, sizeof(float) * (size_t)count);
    } else if (dtype == BF16) {
        uint16_t *out = p;
        for (int64_t i = 0; i < count; i++) out[i] = float_to_bf16(x[i]);
    } else {
        for (int64_t i = 0; i < count; i += CHUNK)
            store_pair((char *)p + 2 * i, F16, count - i < CHUNK ? (int)(count - i) : CHUNK,
                       (pair){load(x + i), load(x + i + LANES)});
    }
}
