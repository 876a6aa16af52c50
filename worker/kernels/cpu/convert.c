/* int8, fp8 (e4m3fn) and nf4 to float32 or bf16, see convert.h. Scales are multiplied in, in float32. */

#include "convert.h"
#include "lanes.h"

/* LANES numbers at to[at], `count` of which are wanted; behind them is room. */
INLINE void put(void *to, int type, long at, vf v) {
    if (type == F32) {
        store((float *)to + at, v);
        return;
    }
#if defined(TERN_AVX512) && defined(__AVX512BF16__) /* makes 0 of what is subnormal, as the product would */
    _mm256_storeu_si256((__m256i *)((bf16 *)to + at), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    store_some((bf16 *)to + at, BF16, LANES, v);
#endif
}

/* Bytes as integers; behind the last, zeros. */
INLINE vi bytes_of(const uint8_t *p, long count, int is_signed) {
    uint8_t last[LANES] = {0};
    if (count < LANES) p = memcpy(last, p, count);
#if LANES == 16
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return (vi)(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#else
    vi all;
    for (int i = 0; i < LANES; i++) all[i] = is_signed ? (int8_t)p[i] : p[i];
    return all;
#endif
}

INLINE vf floats_of(vi v) {
#if LANES == 16
    return (vf)_mm512_cvtepi32_ps((__m512i)v);
#else
    vf all;
    for (int i = 0; i < LANES; i++) all[i] = (float)v[i];
    return all;
#endif
}

INLINE void int8_to(const Part *part, long row, long k, long count, void *to, int type) {
    const uint8_t *codes = (const uint8_t *)part->weight + row * part->stride + k;
    vf scale = splat(((const float *)part->scales)[row]);
    for (long i = 0; i < count; i += LANES) put(to, type, i, floats_of(bytes_of(codes + i, count - i, 1)) * scale);
}

/* Four bits of exponent (bias 7), three of mantissa: moved to where f16 has them (bias 15; its conversion does not slow down for
   subnormals) or float32, then the exponent is put right by a multiplication. S.1111.111 is NaN. */
INLINE vf fp8_values(const uint8_t *codes, long count, float scale) {
#if LANES == 16
    uint8_t last[LANES] = {0};
    if (count < LANES) codes = memcpy(last, codes, count);
    __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
    __m256i size = _mm256_and_si256(code, _mm256_set1_epi16(0x7f)), sign = _mm256_xor_si256(code, size);
    __m512 value = _mm512_cvtph_ps(_mm256_or_si256(_mm256_slli_epi16(sign, 8), _mm256_slli_epi16(size, 7)));
    __mmask16 nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f));
    return (vf)_mm512_mask_mov_ps(_mm512_mul_ps(value, _mm512_set1_ps(scale * 256)), nan, _mm512_set1_ps(NAN));
#else
    vi code = bytes_of(codes, count, 0), size = code & 0x7f;
    vf value = (vf)((code ^ size) << 24 | size << 20) * splat(0x1p120f);
    return select_(size == 0x7f, splat(NAN), value) * splat(scale);
#endif
}

/* Whole vectors are written: groups are multiples of 32 columns, and behind the last is room. */
INLINE void fp8_to(const Matrix *w, const Part *part, long row, long k, long count, void *to, int type) {
    const uint8_t *codes = (const uint8_t *)part->weight + row * part->stride + k;
    const float *scales = (const float *)part->scales + row / part->scale_rows * part->scale_stride;
    for (long done = 0; done < count;) {
        long group = (k + done) / w->group, end = (group + 1) * w->group - k;
        if (end > count) end = count;
        for (; done < end; done += LANES) put(to, type, done, fp8_values(codes + done, count - done, scales[group]));
        done = end;
    }
}

static const float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* Blocks of 64 columns in 32 bytes: byte j holds columns j (low) and j + 32 (high). */
INLINE void nf4_to(const Matrix *w, const Part *part, long row, long k, long count, void *to, int type) {
    const uint8_t *codes = (const uint8_t *)part->weight + row * part->stride + k / 2;
    const float *scales = (const float *)part->scales + row * part->scale_stride;
    for (long done = 0; done < count;) {
        long group = (k + done) / w->group, end = (group + 1) * w->group - k;
        if (end > count) end = count;
        vf scale = splat(scales[group]);
        for (; done < end; done += LANES) {
            vi code = bytes_of(codes + done / 64 * 32 + done % 32, LANES, 0) >> (done % 64 < 32 ? 0 : 4) & 15;
            vf value;
#if LANES == 16
            value = (vf)_mm512_permutexvar_ps((__m512i)code, _mm512_loadu_ps(NF4_VALUES));
#else
            for (int i = 0; i < LANES; i++) value[i] = NF4_VALUES[code[i]];
#endif
            put(to, type, done, value * scale);
        }
        done = end;
    }
}

static void from_int8(const Matrix *w, const Part *part, long row, long k, long count, void *to, int type) {
    (void)w;
    if (type == F32) int8_to(part, row, k, count, to, F32);
    else int8_to(part, row, k, count, to, BF16);
}

static void from_fp8(const Matrix *w, const Part *part, long row, long k, long count, void *to, int type) {
    if (type == F32) fp8_to(w, part, row, k, count, to, F32);
    else fp8_to(w, part, row, k, count, to, BF16);
}

static void from_nf4(const Matrix *w, const Part *part, long row, long k, long count, void *to, int type) {
    if (type == F32) nf4_to(w, part, row, k, count, to, F32);
    else nf4_to(w, part, row, k, count, to, BF16);
}

Convert tern_converter(int kind) {
    switch (kind) {
    case INT8_W8A16: return from_int8;
    case FP8: return from_fp8;
    case NF4: return from_nf4;
    default: return NULL;
    }
}
