/* Which instruction set there is (none: plain C), and numbers of the three types, one at a time.

   A product and its sum are fused only where it is said: the compiler may not (-ffp-contract=off), as results
   must not depend on which of two code paths it found to be worth fusing. */

#ifndef TERN_NUMBERS_H
#define TERN_NUMBERS_H

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

enum { F32, BF16, F16 };
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

#endif
