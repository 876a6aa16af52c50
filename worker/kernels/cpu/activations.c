/* The rows of activations.h, in memory that the calling thread keeps for its next product. */

#include "activations.h"
#include "pool.h"

#include <math.h>
#include <stdlib.h>

#define ROWS_AT_ONCE 4

typedef struct {
    const Call *call;
    Activations to;
    long k, group;
} Job;

static float load(const Call *call, long at) {
    switch (call->x_type) {
    case F32: return ((const float *)call->x)[at];
    case BF16: return bf16_to_float(((const bf16 *)call->x)[at]);
    default: return f16_to_float(((const f16 *)call->x)[at]);
    }
}

static void widen(const Call *call, long at, long count, float *to) {
    if (call->x_type == F32)
        memcpy(to, (const float *)call->x + at, count * sizeof *to);
    else if (call->x_type == BF16)
        for (long i = 0; i < count; i++) to[i] = bf16_to_float(((const bf16 *)call->x)[at + i]);
    else
        for (long i = 0; i < count; i++) to[i] = load(call, at + i);
}

static void quantize_group(const float *x, long count, int8_t *codes, float *scale, int32_t *sum) {
    uint32_t largest = 0; /* floats without their sign are ordered as integers are, NaN above all */
    for (long i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= 0x7f800000) {
        *scale = NAN, *sum = 0;
        memset(codes, 0, count);
        return;
    }
    *scale = bits_to_float(largest) / 127;
    float inverse = *scale > 0 ? 1 / *scale : 0;
    int32_t total = 0;
    for (long i = 0; i < count; i++) {
        /* To nearest, ties to even: adding 1.5 · 2^23 leaves the integer in the lowest bits. */
        float scaled = x[i] * inverse;
        scaled = scaled > 127 ? 127 : scaled < -127 ? -127 : scaled;
        int32_t code = (int32_t)float_to_bits(scaled + 0x1.8p23f) - 0x4b400000;
        codes[i] = (int8_t)code;
        total += code;
    }
    *sum = total;
}

static void quantize_some(const void *data, long index) {
    const Job *job = data;
    const Activations *to = &job->to;
    float x[1024];
    float *row = job->group <= 1024 ? x : malloc(job->group * sizeof *row);
    long end = (index + 1) * ROWS_AT_ONCE < job->call->m ? (index + 1) * ROWS_AT_ONCE : job->call->m;
    for (long m = index * ROWS_AT_ONCE; m < end; m++) {
        int8_t *codes = to->codes + m * to->stride;
        for (long g = 0; g < to->groups; g++) {
            long k = g * job->group, count = job->k - k < job->group ? job->k - k : job->group;
            widen(job->call, m * job->call->x_stride + k, count, row);
            quantize_group(row, count, codes + k, to->scales + m * to->groups + g, to->sums + m * to->groups + g);
        }
        memset(codes + job->k, 0, to->stride - job->k);
    }
    if (row != x) free(row);
}

Activations tern_quantize_rows(const Call *call, long k, long group) {
    static _Thread_local char *memory;
    static _Thread_local size_t size;
    Job job = {.call = call, .k = k, .group = group};
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
    job.to.sums = (int32_t *)(memory + of_codes + of_groups);
    tern_parallel_for(quantize_some, &job, (call->m + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE);
    return job.to;
}
