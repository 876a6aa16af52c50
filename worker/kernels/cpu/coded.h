/* Panels of bfloat16 (panels.h) in 12 bits a number and a little, without loss: signs and mantissas as they are, exponents,
   of which a matrix has few, as codes of 4 bits.

       long      index[panels + 1]     where a panel's exponents begin, in bytes, and where all end
       uint16_t  heads[panels][blocks] how a block's exponents are coded; a block is UNITS_OF_BLOCK units
       uint8_t   rest[panels][pair of units][128]
       uint8_t   exponents[panels][block]: of each pair of units 64 bytes of codes, or 128 of exponents

   each of them beginning at a cache line. A pair of units is 128 numbers in four vectors of 32: z0, z1 (a unit's 16 rows and 16
   more), z2, z3. The words of its first line of `rest` have the sign and mantissa of z0 in bits 15 and 0 – 6, and of z1 with the
   bytes in turn; the second line those of z2 and z3. Its codes are words of four, z0's lowest.

   A code is what an exponent has more than the block's least. If the block has zeros, code 0 is theirs, and 1 the least
   of the others. A block that needs more than 16 codes has its exponents as bytes, z0's and z1's in a word.

   After Zhang et al., 2025, DFloat11, who code exponents by their entropy. */

#ifndef TERN_CODED_H
#define TERN_CODED_H

#include "panels.h"

#define UNITS_OF_BLOCK 8

/* What a matrix takes, coded, in bytes; 0 if it cannot be, or would not be smaller by an eighth. `sizes` [panels] are set to those
   of the exponents. */
long tern_coded_bytes(const Matrix *w, long *sizes);
/* Codes what `tern_coded_bytes` has looked at. `to` is aligned to 64 bytes. */
void tern_code(const Matrix *w, const long *sizes, void *to);

#if BF16_PAIRS

#define ZEROS 0x100 /* in a head, next to the least exponent */
#define BYTES 0x200

/* What is read next of a panel. */
typedef struct {
    const uint16_t *head;
    const char *rest, *exponents;
} Coded;

INLINE long tern_coded_blocks(const Matrix *w) { return tern_units(w) / UNITS_OF_BLOCK; }
INLINE long tern_lines(long bytes) { return (bytes + 63) / 64 * 64; }

INLINE Coded tern_coded_panel(const Matrix *w, long panel) {
    long panels = (w->n + PANEL - 1) / PANEL, blocks = tern_coded_blocks(w);
    const char *heads = (const char *)w->panels + tern_lines((panels + 1) * sizeof(long));
    const char *rest = heads + tern_lines(panels * blocks * sizeof(uint16_t)), *exponents = rest + panels * tern_units(w) * 64;
    return (Coded){(const uint16_t *)heads + panel * blocks, rest + panel * tern_units(w) * 64,
                   exponents + ((const long *)w->panels)[panel]};
}

/* The bytes of words in turn. */
INLINE __m512i tern_swapped(__m512i words) {
    const __m512i order = _mm512_set4_epi32(0x0e0f0c0d, 0x0a0b0809, 0x06070405, 0x02030001);
    return _mm512_shuffle_epi8(words, order);
}

INLINE __m512i tern_numbers(__m512i rest, __m512i exponents) {
    return _mm512_ternarylogic_epi32(rest, _mm512_set1_epi16((short)0x807f), exponents, 0xea); /* (rest & mask) | exponents */
}

/* The exponents of a block's codes, twice, so that the bit behind a code does not matter. */
INLINE __m512i tern_exponents_of(uint16_t head) {
    const __m512i codes = _mm512_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5,
                                           4, 3, 2, 1, 0);
    __mmask32 some = head & ZEROS ? 0xfffefffe : 0xffffffff;
    return _mm512_maskz_slli_epi16(some, _mm512_add_epi16(codes, _mm512_set1_epi16(head & 255)), 7);
}

/* The next pair of units, in codes that stand for `of`. */
INLINE void tern_decode(Coded *from, __m512i of, __m512i z[4]) {
    __m512i codes = _mm512_load_si512(from->exponents);
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) {
        __m512i rest = _mm512_load_si512(from->rest + 64 * i);
        z[2 * i] = tern_numbers(rest, _mm512_permutexvar_epi16(codes, of));
        z[2 * i + 1] = tern_numbers(tern_swapped(rest), _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), of));
        codes = _mm512_srli_epi16(codes, 8);
    }
    from->rest += 128, from->exponents += 64;
}

/* The next pair of units, whose exponents are bytes. */
INLINE void tern_decode_bytes(Coded *from, __m512i z[4]) {
    const __m512i mask = _mm512_set1_epi16(0x7f80);
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) {
        __m512i rest = _mm512_load_si512(from->rest + 64 * i), two = _mm512_load_si512(from->exponents + 64 * i);
        z[2 * i] = tern_numbers(rest, _mm512_and_si512(_mm512_slli_epi16(two, 7), mask));
        z[2 * i + 1] = tern_numbers(tern_swapped(rest), _mm512_and_si512(_mm512_srli_epi16(two, 1), mask));
    }
    from->rest += 128, from->exponents += 128;
}

#endif
#endif
