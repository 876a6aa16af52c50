/* Products of 8-bit integers, summed exactly in 16 lanes of int32; one set per instruction set.

   bytes are 64: 16 lanes of four neighbours. A weight of 8 bits is signed; vpdpbusd wants one side unsigned,
   so there weights are moved up by 128 and `W8_MOVED` says what has to be subtracted again:
   sum (w + 128) x = sum w x + 128 sum x. */

#ifndef TERN_SIMD_INT_H
#define TERN_SIMD_INT_H

#include "numbers.h"

typedef float f32x16 __attribute__((vector_size(64)));

#if defined(TERN_AVX512) && defined(__AVX512VNNI__)

typedef __m512i ints;
typedef __m512i bytes;
#define KEEP(a) IN_REGISTER(a)
#define W8_MOVED 128
INLINE ints ints_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE bytes bytes_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE bytes bytes_repeat(const void *four) { /* from memory: by way of a register it costs twice as much */
    bytes all;
    __asm__("vpbroadcastd %1, %0" : "=v"(all) : "m"(*(const int32_t *)four));
    return all;
}
INLINE bytes low_nibbles(bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
INLINE bytes high_nibbles(bytes a) { return low_nibbles(_mm512_srli_epi32(a, 4)); }
/* Not by its intrinsic: with many sums at once GCC 12 copies and spills them around it. */
INLINE ints dot_w8(ints sum, bytes w, bytes x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}
INLINE ints dot_u4(ints sum, bytes w, bytes x) { return dot_w8(sum, w, x); }
INLINE f32x16 ints_to_float(ints a) { return (f32x16)_mm512_cvtepi32_ps(a); }
#elif defined(TERN_AVX512) || defined(TERN_AVX2)

typedef struct {
    __m256i half[2];
} ints;
typedef ints bytes;
#define KEEP(a) (void)0
#define W8_MOVED 0
#define EACH(f) ((ints){{f(0), f(1)}})
INLINE ints ints_set(int32_t x) { return (ints){{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
INLINE bytes bytes_load(const void *p) {
    const __m256i *q = p;
    return (bytes){{_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)}};
}
INLINE bytes bytes_repeat(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return ints_set(four);
}
INLINE __m256i low_half(__m256i a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
INLINE bytes low_nibbles(bytes a) { return (bytes){{low_half(a.half[0]), low_half(a.half[1])}}; }
INLINE bytes high_nibbles(bytes a) {
    return (bytes){{low_half(_mm256_srli_epi32(a.half[0], 4)), low_half(_mm256_srli_epi32(a.half[1], 4))}};
}
INLINE __m256i add_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE ints dot_u4(ints sum, bytes w, bytes x) {
    for (int i = 0; i < 2; i++) sum.half[i] = add_pairs(sum.half[i], _mm256_maddubs_epi16(w.half[i], x.half[i]));
    return sum;
}
/* |w| · (x with the sign of w): pairs are at most 2 · 128 · 127, which fits 16 bits. */
INLINE ints dot_w8(ints sum, bytes w, bytes x) {
    for (int i = 0; i < 2; i++) {
        __m256i signed_x = _mm256_sign_epi8(x.half[i], w.half[i]);
        sum.half[i] = add_pairs(sum.half[i], _mm256_maddubs_epi16(_mm256_abs_epi8(w.half[i]), signed_x));
    }
    return sum;
}
INLINE f32x16 ints_to_float(ints a) {
    union {
        __m256 half[2];
        f32x16 all;
    } u = {{_mm256_cvtepi32_ps(a.half[0]), _mm256_cvtepi32_ps(a.half[1])}};
    return u.all;
}

#else

typedef struct {
    int32_t lane[16];
} ints;
typedef struct {
    int8_t byte[64];
} bytes;
#define KEEP(a) (void)0
#define W8_MOVED 0
INLINE ints ints_set(int32_t x) {
    ints a;
    for (int i = 0; i < 16; i++) a.lane[i] = x;
    return a;
}
INLINE bytes bytes_load(const void *p) {
    bytes a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE bytes bytes_repeat(const void *four) {
    bytes a;
    for (int i = 0; i < 16; i++) memcpy(a.byte + 4 * i, four, 4);
    return a;
}
INLINE bytes low_nibbles(bytes a) {
    for (int i = 0; i < 64; i++) a.byte[i] &= 15;
    return a;
}
INLINE bytes high_nibbles(bytes a) {
    for (int i = 0; i < 64; i++) a.byte[i] = (uint8_t)a.byte[i] >> 4;
    return a;
}
INLINE ints dot_w8(ints sum, bytes w, bytes x) {
#if defined(TERN_NEON) && defined(__ARM_FEATURE_DOTPROD)
    for (int i = 0; i < 16; i += 4)
        vst1q_s32(sum.lane + i, vdotq_s32(vld1q_s32(sum.lane + i), vld1q_s8(w.byte + 4 * i), vld1q_s8(x.byte + 4 * i)));
#else
    for (int i = 0; i < 16; i++) {
        const int8_t *a = w.byte + 4 * i, *b = x.byte + 4 * i;
        sum.lane[i] += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    }
#endif
    return sum;
}
INLINE ints dot_u4(ints sum, bytes w, bytes x) { return dot_w8(sum, w, x); }
INLINE f32x16 ints_to_float(ints a) {
    f32x16 result;
    for (int i = 0; i < 16; i++) result[i] = (float)a.lane[i];
    return result;
}

#endif
#endif
