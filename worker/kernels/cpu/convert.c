/* int8, fp8 (e4m3fn) and nf4 to float32, see convert.h. Scales are multiplied in. */

#include "convert.h"

#include <math.h>

static void from_int8(const Matrix *w, const Part *part, long row, long k, long count, float *to) {
    (void)w;
    const int8_t *codes = (const int8_t *)part->weight + row * part->stride + k;
    float scale = part->scales[row];
    for (long i = 0; i < count; i++) to[i] = (float)codes[i] * scale;
}

/* Four bits of exponent (bias 7), three of mantissa: moved to where float32 has them, then the exponent is put
   right by a multiplication, subnormals included. S.1111.111 is NaN. */
static void from_fp8(const Matrix *w, const Part *part, long row, long k, long count, float *to) {
    const uint8_t *codes = (const uint8_t *)part->weight + row * part->stride + k;
    const float *scales = part->scales + row / part->scale_rows * part->scale_stride;
    for (long done = 0; done < count;) {
        long group = (k + done) / w->group, end = (group + 1) * w->group - k;
        if (end > count) end = count;
        float scale = scales[group];
        for (; done < end; done++) {
            uint32_t code = codes[done], size = code & 0x7f;
            float value = bits_to_float((code & 0x80) << 24 | size << 20) * 0x1p120f;
            to[done] = (size == 0x7f ? NAN : value) * scale;
        }
    }
}

static const float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* 32 codes, of the low or of the high nibbles of 32 bytes. */
INLINE void nf4_values(const uint8_t *bytes, int shift, float scale, float *to) {
#if defined(TERN_AVX512)
    __m512 table = _mm512_loadu_ps(NF4_VALUES);
    for (int i = 0; i < 32; i += 16) {
        __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(bytes + i)));
        codes = _mm512_srl_epi32(codes, _mm_cvtsi32_si128(shift)); /* the table's index is four bits of it */
        _mm512_storeu_ps(to + i, _mm512_mul_ps(_mm512_permutexvar_ps(codes, table), _mm512_set1_ps(scale)));
    }
#else
    for (int i = 0; i < 32; i++) to[i] = NF4_VALUES[bytes[i] >> shift & 15] * scale;
#endif
}

/* Blocks of 64 columns in 32 bytes: byte j holds columns j (low) and j + 32 (high). */
static void from_nf4(const Matrix *w, const Part *part, long row, long k, long count, float *to) {
    const uint8_t *bytes = (const uint8_t *)part->weight + row * part->stride + k / 2;
    const float *scales = part->scales + row * part->scale_stride;
    for (long at = 0; at < count; at += 32) {
        const uint8_t *half = bytes + at / 64 * 32;
        int shift = at % 64 ? 4 : 0;
        float scale = scales[(k + at) / w->group];
        if (count - at >= 32) {
            nf4_values(half, shift, scale, to + at);
        } else {
            float last[32];
            nf4_values(half, shift, scale, last);
            memcpy(to + at, last, (count - at) * sizeof *to);
        }
    }
}

Convert tern_converter(int kind) {
    switch (kind) {
    case INT8_W8A16: return from_int8;
    case FP8: return from_fp8;
    case NF4: return from_nf4;
    default: return NULL;
    }
}
