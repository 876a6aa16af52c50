/* Vectors of VL floats, and loads that widen to them. One set per instruction set; the last is plain C.

   A product and its sum are fused only where `fma` says so: the compiler may not (-ffp-contract=off), so
   that all kernels round alike. */

#ifndef TERN_SIMD_H
#define TERN_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define TERN_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TERN_AVX2 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define TERN_NEON 1
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* A vector that is used several times is loaded once: compilers like to fold each use into a load. */
#if defined(TERN_AVX512) || defined(TERN_AVX2)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v) (void)0
#endif

typedef uint16_t bf16;
typedef struct {
    uint16_t bits;
} f16;

INLINE float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float bf16_to_float(bf16 value) { return bits_to_float((uint32_t)value << 16); }

/* To nearest, ties to even; a NaN stays one. */
INLINE bf16 float_to_bf16(float value) {
    uint32_t bits = float_to_bits(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

INLINE float f16_to_float(f16 value) {
#if defined(TERN_AVX512) || defined(TERN_AVX2)
    return _cvtsh_ss(value.bits);
#elif defined(TERN_NEON)
    __fp16 half;
    memcpy(&half, &value, 2);
    return half;
#else
    /* The exponent is moved up by a multiplication, which also makes subnormals right. */
    uint32_t bits = value.bits, sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
    if (rest >= 0x7c00u << 13) return bits_to_float(sign | 0x7f800000 | rest);
    return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 0x1p112f));
#endif
}

INLINE f16 float_to_f16(float value) {
    f16 result;
#if defined(TERN_AVX512) || defined(TERN_AVX2)
    result.bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(TERN_NEON)
    __fp16 half = (__fp16)value;
    memcpy(&result, &half, 2);
#else
    uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000)
        result.bits = sign | 0x7e00;
    else if (size >= 0x477ff000) /* rounds to more than 65504 */
        result.bits = sign | 0x7c00;
    else if (size < 0x38800000) /* subnormal: adding 0.5 leaves the rounded bits at the bottom */
        result.bits = sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000);
    else
        result.bits = sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
#endif
    return result;
}

typedef float v4 __attribute__((vector_size(16)));

/* ── vectors ──────────────────────────────────────────────────────────────────────────────────── */

#if defined(TERN_AVX512)

#define VL 16
typedef __m512 vf;
INLINE vf vzero(void) { return _mm512_setzero_ps(); }
INLINE vf vset(float x) { return _mm512_set1_ps(x); }
INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf load_f32(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store_f32(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf widen_bf16(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
INLINE vf load_bf16(const bf16 *p) { return widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf load_f16(const f16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* The sums of four vectors. Of each: ((l0 + l2) + (l1 + l3)) within 128 bits, those likewise. */
INLINE v4 sum4(vf a, vf b, vf c, vf d) {
    vf ab = vadd(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = vadd(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d p = _mm512_castps_pd(ab), q = _mm512_castps_pd(cd);
    vf all = vadd(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return (v4)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif defined(TERN_AVX2)

#define VL 8
typedef __m256 vf;
INLINE vf vzero(void) { return _mm256_setzero_ps(); }
INLINE vf vset(float x) { return _mm256_set1_ps(x); }
INLINE vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf load_f32(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store_f32(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf load_bf16(const bf16 *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE vf load_f16(const f16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE v4 sum4(vf a, vf b, vf c, vf d) {
    vf ab = vadd(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = vadd(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256d p = _mm256_castps_pd(ab), q = _mm256_castps_pd(cd);
    vf all = vadd(_mm256_castpd_ps(_mm256_unpacklo_pd(p, q)), _mm256_castpd_ps(_mm256_unpackhi_pd(p, q)));
    return (v4)_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

#elif defined(TERN_NEON)

#define VL 4
typedef float32x4_t vf;
INLINE vf vzero(void) { return vdupq_n_f32(0); }
INLINE vf vset(float x) { return vdupq_n_f32(x); }
INLINE vf vadd(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vmul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf vfma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf load_f32(const float *p) { return vld1q_f32(p); }
INLINE void store_f32(float *p, vf a) { vst1q_f32(p, a); }
INLINE vf load_bf16(const bf16 *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE vf load_f16(const f16 *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
INLINE v4 sum4(vf a, vf b, vf c, vf d) {
    return (v4)vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}

#else

#define VL 4
typedef v4 vf;
INLINE vf vzero(void) { return (vf){0, 0, 0, 0}; }
INLINE vf vset(float x) { return (vf){x, x, x, x}; }
INLINE vf vadd(vf a, vf b) { return a + b; }
INLINE vf vmul(vf a, vf b) { return a * b; }
INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf load_f32(const float *p) {
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE void store_f32(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf load_bf16(const bf16 *p) {
    return (vf){bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
INLINE vf load_f16(const f16 *p) {
    return (vf){f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
}
INLINE float sum_of(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
INLINE v4 sum4(vf a, vf b, vf c, vf d) {
    return (v4){sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
}

#endif
#endif
