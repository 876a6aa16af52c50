/* AVX-512 only. */
#pragma once
#include <immintrin.h>

/* 16 × 16 groups of four bytes. */
static inline __attribute__((always_inline)) void transpose16(__m512i a[16]) {
    __m512i b[16];
    _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) { /* 4 × 4 within 128 bits */
        __m512i p = _mm512_unpacklo_epi32(a[i], a[i + 1]), q = _mm512_unpacklo_epi32(a[i + 2], a[i + 3]);
        __m512i r = _mm512_unpackhi_epi32(a[i], a[i + 1]), s = _mm512_unpackhi_epi32(a[i + 2], a[i + 3]);
        b[i] = _mm512_unpacklo_epi64(p, q), b[i + 1] = _mm512_unpackhi_epi64(p, q);
        b[i + 2] = _mm512_unpacklo_epi64(r, s), b[i + 3] = _mm512_unpackhi_epi64(r, s);
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) { /* 4 × 4 of 128 bits */
        __m512i p = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), q = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        __m512i r = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88), s = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        a[i] = _mm512_shuffle_i32x4(p, r, 0x88), a[i + 8] = _mm512_shuffle_i32x4(p, r, 0xdd);
        a[i + 4] = _mm512_shuffle_i32x4(q, s, 0x88), a[i + 12] = _mm512_shuffle_i32x4(q, s, 0xdd);
    }
}
