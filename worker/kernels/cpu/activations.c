/* The rows of activations.h, in memory that the calling thread keeps for its next product. */

#include "activations.h"
#include "lanes.h"
#include "pool.h"

#include <float.h>
#include <stdlib.h>

#define ROWS_AT_ONCE 4

typedef struct {
    const Call *call;
    Activations to;
    long k, group;
    int moved;
} Job;

INLINE void store_codes(vi codes, int8_t *to, long count) {
#if LANES == 16
    __mmask16 some = count >= LANES ? 0xffff : (1u << count) - 1;
    _mm512_mask_cvtepi32_storeu_epi8(to, some, (__m512i)codes);
#else
    for (int i = 0; i < LANES && i < count; i++) to[i] = (int8_t)codes[i];
#endif
}

/* `most`: the largest size in a group. Returns what its numbers are multiplied with; the scale is NaN where one is not finite. */
INLINE float inverse_of(float most, float *scale) {
    *scale = most < INFINITY ? most / 127 : NAN;
    return *scale >= FLT_MIN ? 1 / *scale : 0; /* of one that is smaller it would be infinite */
}

/* Returns the sum of the codes. */
INLINE int32_t quantize_group(const char *x, int type, long count, int8_t *codes, float *scale) {
    vi sizes = (vi){}, sums = (vi){};
    for (long i = 0; i < count; i += LANES) sizes = larger_size(sizes, load_some(x + i * size_of(type), type, count - i));
    float inverse = inverse_of(largest_size(sizes), scale);
    int32_t sum = 0;
    if (*scale != *scale) {
        memset(codes, 0, count);
        return 0;
    }
    for (long i = 0; i < count; i += LANES) {
        /* To nearest, ties to even: adding 1.5 · 2^23 leaves the integer in the lowest bits. */
        vf scaled = smaller(splat(127), larger(splat(-127), load_some(x + i * size_of(type), type, count - i) * splat(inverse)));
        vi code = (vi)(scaled + splat(0x1.8p23f)) - 0x4b400000;
        store_codes(code, codes + i, count - i);
        sums += code;
    }
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return sum;
}

#if LANES == 16
/* The same of bfloat16, 32 at a time. No product rounds to more than 127, as the largest is 127 within a rounding. */
INLINE int32_t quantize_bf16(const bf16 *x, long count, int8_t *codes, float *scale) {
#define SOME(i) (count - (i) >= 32 ? 0xffffffffu : (1u << (count - (i))) - 1)
    __m512i largest = _mm512_setzero_si512(), sums = largest;
    for (long i = 0; i < count; i += 32)
        largest = _mm512_max_epu16(largest, _mm512_and_si512(_mm512_maskz_loadu_epi16(SOME(i), x + i), _mm512_set1_epi16(0x7fff)));
    largest = _mm512_max_epu32(_mm512_slli_epi32(largest, 16), _mm512_and_si512(largest, _mm512_set1_epi32((int)0xffff0000)));
    __m512 inverse = _mm512_set1_ps(inverse_of(bits_to_float(_mm512_reduce_max_epu32(largest)), scale));
    if (*scale != *scale) {
        memset(codes, 0, count);
        return 0;
    }
    for (long i = 0; i < count; i += 32) {
        __m512i both = _mm512_maskz_loadu_epi16(SOME(i), x + i);
        __m512 low = (__m512)_mm512_slli_epi32(both, 16), high = (__m512)_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000));
        __m512i even = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)), odd = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        sums = _mm512_add_epi32(sums, _mm512_add_epi32(even, odd));
        __m512i woven = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
        _mm512_mask_cvtepi16_storeu_epi8(codes + i, SOME(i), woven);
    }
    return _mm512_reduce_add_epi32(sums);
#undef SOME
}
#endif

static void quantize_some(const void *data, long index) {
    const Job *job = data;
    const Activations *to = &job->to;
    const Call *call = job->call;
    long end = (index + 1) * ROWS_AT_ONCE < call->m ? (index + 1) * ROWS_AT_ONCE : call->m;
    for (long m = index * ROWS_AT_ONCE; m < end; m++) {
        int8_t *codes = to->codes + m * to->stride;
        for (long g = 0; g < to->groups; g++) {
            long k = g * job->group, count = job->k - k < job->group ? job->k - k : job->group, at = m * to->groups + g;
            const char *x = (const char *)call->x + (m * call->x_stride + k) * size_of(call->x_type);
            float *scale = to->scales + at;
            int32_t sum;
            switch (call->x_type) {
            case F32: sum = quantize_group(x, F32, count, codes + k, scale); break;
#if LANES == 16
            case BF16: sum = quantize_bf16((const bf16 *)x, count, codes + k, scale); break;
#else
            case BF16: sum = quantize_group(x, BF16, count, codes + k, scale); break;
#endif
            default: sum = quantize_group(x, F16, count, codes + k, scale);
            }
            to->moved[at] = -job->moved * sum;
        }
        memset(codes + job->k, 0, to->stride - job->k);
    }
}

Activations tern_quantize_rows(const Call *call, long k, long group, int moved) {
    static _Thread_local char *memory;
    static _Thread_local size_t size;
    Job job = {.call = call, .k = k, .group = group, .moved = moved};
    job.to.stride = (k + 63) / 64 * 64;
    job.to.groups = (k + group - 1) / group;
    size_t of_codes = call->m * job.to.stride, of_groups = call->m * job.to.groups * 4;
    if (size < of_codes + 2 * of_groups) {
        free(memory);
        size = of_codes + 2 * of_groups;
        memory = aligned_alloc(64, (size + 63) / 64 * 64);
        if (!memory) abort(); /* as Python does for so little */
    }
    job.to.codes = (int8_t *)memory;
    job.to.scales = (float *)(memory + of_codes);
    job.to.moved = (int32_t *)(memory + of_codes + of_groups);
    tern_parallel_for(quantize_some, &job, (call->m + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE);
    return job.to;
}
