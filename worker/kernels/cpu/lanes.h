/* Vectors of LANES floats in GCC's vector extension, so that one source serves AVX-512, AVX2, NEON and plain C.
 *
 * Heads and rows are read in chunks of 2 · LANES numbers, as a pair of vectors:
 *
 *     bfloat16   x0 x1 x2 x3 … → (x0 x2 …), (x1 x3 …)   one load, a shift and a mask
 *     others     first half, second half
 *
 * `store_pair` undoes it, so nobody else sees the order. Sums over a row follow it, the same for every caller.
 * Fused means `fma_`, always. Matrices are read in the order of memory (`load_f32`, `load_bf16`, `load_f16`).
 */
#pragma once
#include "numbers.h"
#include <math.h>

#if defined(TERN_AVX512)
#define LANES 16
#elif defined(TERN_AVX2)
#define LANES 8
#else
#define LANES 4
#endif
#define CHUNK (2 * LANES)

typedef float vf __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), may_alias));
typedef struct { vf a, b; } pair;

INLINE int64_t size_of(int dtype) { return dtype == F32 ? 4 : 2; }

INLINE vf splat(float x) { return (vf){} + x; }

INLINE vf fma_(vf a, vf b, vf c) {
#if LANES == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(TERN_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE vf select_(vi condition, vf yes, vf no) { return (vf)(((vi)yes & condition) | ((vi)no & ~condition)); }
/* Of two; the second where one is NaN. */
#if LANES == 16
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE vf larger(vf a, vf b) { return select_(a > b, a, b); }
INLINE vf smaller(vf a, vf b) { return select_(a < b, a, b); }
#endif

/* Lanes of a and b, by their numbers. */
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* GCC before 12 */
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* Sums of LANES vectors' lanes, as one vector. Lane i always adds in the same order, whatever i is. */
INLINE vf sums(const vf *v) {
#if LANES == 16
#define LOW4 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define HIGH4 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#elif LANES == 8
#define LOW4 0, 8, 1, 9, 4, 12, 5, 13
#define HIGH4 2, 10, 3, 11, 6, 14, 7, 15
#define LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#define EVEN 0, 1, 2, 3, 8, 9, 10, 11
#define ODD 4, 5, 6, 7, 12, 13, 14, 15
#else
#define LOW4 0, 4, 1, 5
#define HIGH4 2, 6, 3, 7
#define LOW2 0, 1, 4, 5
#define HIGH2 2, 3, 6, 7
#endif
    vf t[LANES / 2], u[LANES / 4];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; i++)
        t[i] = SHUFFLE(v[2 * i], v[2 * i + 1], LOW4) + SHUFFLE(v[2 * i], v[2 * i + 1], HIGH4);
#pragma GCC unroll 4
    for (int i = 0; i < LANES / 4; i++)
        u[i] = SHUFFLE(t[2 * i], t[2 * i + 1], LOW2) + SHUFFLE(t[2 * i], t[2 * i + 1], HIGH2);
#if LANES == 16
    for (int i = 0; i < 2; i++)
        t[i] = SHUFFLE(u[2 * i], u[2 * i + 1], EVEN) + SHUFFLE(u[2 * i], u[2 * i + 1], ODD);
    return SHUFFLE(t[0], t[1], EVEN) + SHUFFLE(t[0], t[1], ODD);
#elif LANES == 8
    return SHUFFLE(u[0], u[1], EVEN) + SHUFFLE(u[0], u[1], ODD);
#else
    return u[0];
#endif
}

#if LANES == 16
#define HALVES(v) STEP(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7) \
    STEP(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11) \
    STEP(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13) \
    STEP(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#elif LANES == 8
#define HALVES(v) STEP(v, 4, 5, 6, 7, 0, 1, 2, 3) STEP(v, 2, 3, 0, 1, 6, 7, 4, 5) \
    STEP(v, 1, 0, 3, 2, 5, 4, 7, 6)
#else
#define HALVES(v) STEP(v, 2, 3, 0, 1) STEP(v, 1, 0, 3, 2)
#endif

INLINE float sum_of(vf v) {
#define STEP(v, ...) v = v + SHUFFLE(v, v, __VA_ARGS__);
    HALVES(v)
#undef STEP
    return v[0];
}

INLINE float largest_of(vf v) {
#define STEP(v, ...) v = larger(v, SHUFFLE(v, v, __VA_ARGS__));
    HALVES(v)
#undef STEP
    return v[0];
}

/* Numbers without their signs, which as integers have the same order, and NaN is the largest. */
INLINE vi larger_size(vi sizes, vf v) {
    vi size = (vi)v & 0x7fffffff;
    return (vi)select_(size > sizes, (vf)size, (vf)sizes);
}

INLINE float largest_size(vi sizes) {
#if LANES == 16
    return bits_to_float(_mm512_reduce_max_epu32((__m512i)sizes));
#else
    int32_t most = 0;
    for (int i = 0; i < LANES; i++) most = sizes[i] > most ? sizes[i] : most;
    return bits_to_float((uint32_t)most);
#endif
}

/* ── numbers in memory ────────────────────────────────────────────────────────────────────────── */

INLINE vi bf16_bits(vf v) { /* rounded, in the upper halves */
    vi u = (vi)v, rounded = u + 0x7fff + ((u >> 16) & 1);
    return ((vi)select_(v == v, (vf)rounded, (vf)(u | 0x400000))) & (int32_t)0xffff0000;
}

/* LANES numbers in the order of memory. */
INLINE vf load_f32(const float *p) { return load(p); }

INLINE vf load_bf16(const bf16 *p) {
#if LANES == 16
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif LANES == 8
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#elif defined(TERN_NEON)
    return (vf)vshll_n_u16(vld1_u16(p), 16);
#else
    return (vf){bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
#endif
}

INLINE vf load_f16(const f16 *p) {
#if LANES == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif LANES == 8
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(TERN_NEON)
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#else
    return (vf){f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
#endif
}

/* `count` numbers at p in the order of memory, at most LANES; the rest is 0. Nothing behind them is read. */
INLINE vf load_some(const void *p, int dtype, long count) {
    char last[4 * LANES];
    if (count < LANES) {
        memset(last, 0, sizeof last);
        p = memcpy(last, p, (size_t)(count * size_of(dtype)));
    }
    return dtype == F32 ? load_f32(p) : dtype == BF16 ? load_bf16(p) : load_f16(p);
}

INLINE void store_some(void *p, int dtype, long count, vf v) {
    char last[4 * LANES];
    void *to = count < LANES ? last : p;
    if (dtype == F32) {
        store(to, v);
    } else if (dtype == BF16) {
#if LANES == 16
        _mm256_storeu_si256(to, _mm512_cvtepi32_epi16((__m512i)(bf16_bits(v) >> 16)));
#else
        for (int i = 0; i < LANES; i++) ((bf16 *)to)[i] = float_to_bf16(v[i]);
#endif
    } else {
#if LANES == 16
        _mm256_storeu_si256(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#else
        for (int i = 0; i < LANES; i++) ((f16 *)to)[i] = float_to_f16(v[i]);
#endif
    }
    if (count < LANES) memcpy(p, last, (size_t)(count * size_of(dtype)));
}

#if LANES == 16
INLINE __mmask16 first(int count) { return (__mmask16)(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1); }
#endif

/* `count` numbers at p, at most CHUNK; the rest of the pair is 0. Nothing behind them is read. */
INLINE pair load_pair(const void *p, int dtype, int count) {
    pair v;
#if LANES == 16
    if (dtype == BF16) {
        __mmask32 mask = count >= 32 ? 0xffffffff : (1u << count) - 1;
        vi u = (vi)(count >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(mask, p));
        v.a = (vf)(u << 16), v.b = (vf)(u & (int32_t)0xffff0000);
    } else if (dtype == F32) {
        const float *x = p;
        v.a = count >= 16 ? load(x) : (vf)_mm512_maskz_loadu_ps(first(count), x);
        v.b = count >= 32 ? load(x + 16) : (vf)_mm512_maskz_loadu_ps(first(count - 16), x + 16);
    } else {
        const uint16_t *x = p;
        v.a = (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), x));
        v.b = (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count - 16), x + 16));
    }
#else
    uint8_t short_[4 * CHUNK];
    if (count < CHUNK) {
        memset(short_, 0, sizeof short_);
        memcpy(short_, p, (size_t)(count * size_of(dtype)));
        p = short_;
    }
    if (dtype == BF16) {
        vi u;
        memcpy(&u, p, sizeof u);
        v.a = (vf)(u << 16), v.b = (vf)(u & (int32_t)0xffff0000);
    } else if (dtype == F32) {
        v.a = load(p), v.b = load((const float *)p + LANES);
    } else {
        v.a = load_f16(p), v.b = load_f16((const f16 *)p + LANES);
    }
#endif
    return v;
}

INLINE void store_pair(void *p, int dtype, int count, pair v) {
    uint8_t whole[4 * CHUNK];
    uint8_t *to = count < CHUNK ? whole : p;
    if (dtype == BF16) {
        vi u = bf16_bits(v.b) | ((bf16_bits(v.a) >> 16) & 0xffff);
        memcpy(to, &u, sizeof u);
    } else if (dtype == F32) {
        store((float *)to, v.a), store((float *)to + LANES, v.b);
    } else {
#if LANES == 16
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)v.a, _MM_FROUND_TO_NEAREST_INT));
        _mm256_storeu_si256((__m256i *)to + 1, _mm512_cvtps_ph((__m512)v.b, _MM_FROUND_TO_NEAREST_INT));
#elif LANES == 8
        _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)v.a, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128((__m128i *)to + 1, _mm256_cvtps_ph((__m256)v.b, _MM_FROUND_TO_NEAREST_INT));
#else
        f16 x[CHUNK];
        for (int i = 0; i < LANES; i++) x[i] = float_to_f16(v.a[i]), x[i + LANES] = float_to_f16(v.b[i]);
        memcpy(to, x, sizeof x);
#endif
    }
    if (count < CHUNK) memcpy(p, whole, (size_t)(count * size_of(dtype)));
}

/* ── functions ────────────────────────────────────────────────────────────────────────────────── */

/* e^x within 2 units in the last place, for x clamped to [-87, 88]; NaN stays NaN. Cody-Waite reduction to
 * |r| <= ln 2 / 2, and Cephes' polynomial of degree 5. */
INLINE vf exp_(vf x) {
    vf c = larger(splat(-87.0f), smaller(splat(88.0f), x));
    vf shifted = fma_(c, splat(1.44269504088896341f), splat(12582912.0f)); /* 1.5 · 2^23: rounds to an integer */
    vf n = shifted - splat(12582912.0f);
    vf r = fma_(n, splat(-0.693359375f), c);
    r = fma_(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma_(p, r, splat(1.3981999507e-3f));
    p = fma_(p, r, splat(8.3334519073e-3f));
    p = fma_(p, r, splat(4.1665795894e-2f));
    p = fma_(p, r, splat(1.6666665459e-1f));
    p = fma_(p, r, splat(5.0000001201e-1f));
    p = fma_(p, r * r, r) + splat(1.0f);
    vf y = (vf)((vi)p + ((vi)shifted << 23));
    return select_(x == x, y, x);
}

/* 2^x within 4 units in the last place, exact for integers; below 2^-126 it may be that or less. NaN stays NaN. The rest within half a unit
 * goes into a polynomial of degree 5 with the least relative error. */
INLINE vf exp2_(vf x) {
#if LANES == 16
    vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT), r = x - n;
#else
    vf c = larger(splat(-126.0f), smaller(splat(127.0f), x));
    vf shifted = c + splat(12582912.0f); /* 1.5 · 2^23: rounds to an integer */
    vf n = shifted - splat(12582912.0f), r = c - n;
#endif
    vf p = splat(1.3264727313e-3f);
    p = fma_(p, r, splat(9.6715129912e-3f));
    p = fma_(p, r, splat(5.5507335812e-2f));
    p = fma_(p, r, splat(2.4022242427e-1f));
    p = fma_(p, r, splat(6.9314700365e-1f));
    p = fma_(p, r, splat(1.0f));
#if LANES == 16
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return select_(x == x, (vf)((vi)p + ((vi)shifted << 23)), x);
#endif
}

INLINE vf tanh_(vf x) { return splat(1.0f) - splat(2.0f) / (exp_(x + x) + splat(1.0f)); }
