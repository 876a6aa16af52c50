#include "tiles.h"
#include "lanes.h"
#include "pool.h"
#if defined(TERN_AVX512)
#include "transpose.h"
#endif

#include <stdlib.h>

#define MOST 16 /* rows of a tile */
#define BLOCK 512 /* numbers that become float32 at once */
#define PIECE 4096 /* units that a thread packs at once, or a few more: a microsecond's work */

void tern_interleave(const void *const *rows, int count, long bytes, uint32_t *to, long stride) {
#if defined(TERN_AVX512)
    __mmask16 lanes = (__mmask16)((1u << count) - 1);
    for (long at = 0; at < bytes; at += 64, to += 16 * stride) {
        __m512i units[16];
        __mmask64 some = bytes - at >= 64 ? ~0ull : (1ull << (bytes - at)) - 1;
        _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++)
            units[r] = r < count ? _mm512_maskz_loadu_epi8(some, (const char *)rows[r] + at) : _mm512_setzero_si512();
        transpose16(units);
        long left = (bytes - at + 3) / 4;
        if (left >= 16)
            _Pragma("GCC unroll 16") for (int u = 0; u < 16; u++) _mm512_mask_storeu_epi32(to + u * stride, lanes, units[u]);
        else
            for (int u = 0; u < left; u++) _mm512_mask_storeu_epi32(to + u * stride, lanes, units[u]);
    }
#else
    for (int r = 0; r < count; r++)
        for (long at = 0; at < bytes; at += 4) {
            uint32_t unit = 0;
            memcpy(&unit, (const char *)rows[r] + at, bytes - at < 4 ? bytes - at : 4);
            to[at / 4 * stride + r] = unit;
        }
#endif
}

typedef struct {
    Tiles to;
    const Activations *codes; /* or else of */
    const Call *call;
    long k;
    int pairs;
    long pieces, width; /* of a tile; units of one */
} Job;

static void pack_piece(const void *data, long index) {
    const Job *job = data;
    const Call *call = job->call;
    long tile = index / job->pieces, begin = index % job->pieces * job->width;
    long m0 = tern_first_row(&job->to, tile), rows = tern_first_row(&job->to, tile + 1) - m0;
    long end = begin + job->width < job->to.columns ? begin + job->width : job->to.columns;
    uint32_t *to = job->to.units + m0 * job->to.columns + begin * rows;
    const void *of[MOST];
    if (job->codes) {
        for (long r = 0; r < rows; r++) of[r] = job->codes->codes + (m0 + r) * job->codes->stride + begin * 4;
        tern_interleave(of, (int)rows, (end - begin) * 4, to, rows);
        return;
    }
    long size = size_of(call->x_type);
    for (long r = 0; r < rows; r++) of[r] = (const char *)call->x + (m0 + r) * call->x_stride * size;
    if (job->pairs || call->x_type == F32) {
        for (long r = 0; r < rows; r++) of[r] = (const char *)of[r] + begin * 4;
        tern_interleave(of, (int)rows, (end * 4 < job->k * size ? end * 4 : job->k * size) - begin * 4, to, rows);
        return;
    }
    float room[MOST][BLOCK];
    for (long k = begin; k < end; k += BLOCK) {
        long some = end - k < BLOCK ? end - k : BLOCK;
        const void *floats[MOST];
        for (long r = 0; r < rows; r++) {
            const char *from = (const char *)of[r] + k * size;
            for (long i = 0; i < some; i += LANES) store(room[r] + i, load_some(from + i * size, call->x_type, some - i));
            floats[r] = room[r];
        }
        tern_interleave(floats, (int)rows, some * 4, to + (k - begin) * rows, rows);
    }
}

static Tiles pack(Job *job, long m, long columns, long most) {
    static _Thread_local uint32_t *memory; /* kept for the next product */
    static _Thread_local long size;
    if (size < m * columns) {
        free(memory);
        size = m * columns;
        memory = aligned_alloc(64, (size * 4 + 63) / 64 * 64);
        if (!memory) abort(); /* as Python does for so little */
    }
    job->to = (Tiles){memory, columns, m, (m + most - 1) / most};
    long pieces = m / job->to.count * columns / PIECE;
    job->width = pieces > 1 ? (columns / pieces + 15) / 16 * 16 : columns;
    job->pieces = (columns + job->width - 1) / job->width;
    tern_parallel_for(pack_piece, job, job->to.count * job->pieces);
    return job->to;
}

Tiles tern_tiles_of_codes(const Activations *x, long m, long most) {
    Job job = {.codes = x};
    return pack(&job, m, x->stride / 4, most);
}

Tiles tern_tiles_of_rows(const Call *call, long k, int pairs, long most) {
    Job job = {.call = call, .k = k, .pairs = pairs};
    return pack(&job, call->m, pairs ? (k + 1) / 2 : k, most);
}
