/* Coding of coded.h, once, when weights are loaded. */

#include "coded.h"
#include "pool.h"
#include "tiles.h"

#include <stdlib.h>

#if BF16_PAIRS

#define COLUMNS (2 * UNITS_OF_BLOCK) /* of a block */
#define BLOCK_VECTORS (UNITS_OF_BLOCK * 2)

/* Least and largest exponents of words, in place. */
typedef struct {
    __m512i least, least_above_0, most;
} Range;

INLINE Range range_of_none(void) {
    return (Range){_mm512_set1_epi16(-1), _mm512_set1_epi16(-1), _mm512_setzero_si512()};
}

INLINE void extend(Range *range, __m512i numbers) {
    __m512i exponents = _mm512_and_si512(numbers, _mm512_set1_epi16(0x7f80));
    range->least = _mm512_min_epu16(range->least, exponents);
    range->least_above_0 = _mm512_min_epu16(range->least_above_0, _mm512_sub_epi16(exponents, _mm512_set1_epi16(0x80)));
    range->most = _mm512_max_epu16(range->most, exponents);
}

INLINE int least_of(__m256i words) {
    __m128i of_8 = _mm_min_epu16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(of_8)) & 0xffff;
}

static uint16_t head_of(__m256i least, __m256i least_above_0, __m256i most) {
    int zeros = least_of(least) == 0, last = (0xffff - least_of(_mm256_xor_si256(most, _mm256_set1_epi16(-1)))) >> 7;
    if (last == 0) return ZEROS;
    int first = (least_of(least_above_0) >> 7) + !zeros; /* code 0 */
    return last - first < 16 ? (uint16_t)(first | (zeros ? ZEROS : 0)) : BYTES;
}

INLINE __m256i half(__m512i words, int upper) { return upper ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words); }

INLINE long exponent_bytes(uint16_t head) { return UNITS_OF_BLOCK / 2 * (head == BYTES ? 128 : 64); }

/* ── how large ────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const Matrix *w;
    long *sizes;
} Counting;

static void count_panel(const void *job, long panel) {
    const Counting *counting = job;
    const Matrix *w = counting->w;
    const char *rows[PANEL];
    long count = 0, bytes = 0;
    for (; count < PANEL && panel * PANEL + count < w->n; count++) {
        long own;
        const Part *part = tern_part_of(w, panel * PANEL + count, &own);
        rows[count] = (const char *)part->weight + own * part->stride;
    }
    for (long k = 0; k < w->k; k += 2 * COLUMNS) {
        Range range = range_of_none();
        for (long r = 0; r < count; r++) extend(&range, _mm512_loadu_si512(rows[r] + 2 * k));
        if (count < PANEL) extend(&range, _mm512_setzero_si512());
        for (int upper = 0; upper < 2; upper++)
            bytes += exponent_bytes(head_of(half(range.least, upper), half(range.least_above_0, upper), half(range.most, upper)));
    }
    counting->sizes[panel] = bytes;
}

long tern_coded_bytes(const Matrix *w, long *sizes) {
    if (w->kind != BF16 || w->k % (2 * COLUMNS)) return 0;
    long panels = (w->n + PANEL - 1) / PANEL;
    Counting job = {w, sizes};
    tern_parallel_for(count_panel, &job, panels);
    long bytes = tern_lines((panels + 1) * sizeof(long)) + tern_lines(panels * tern_coded_blocks(w) * sizeof(uint16_t)) +
                 panels * tern_units(w) * 64;
    for (long i = 0; i < panels; i++) bytes += sizes[i];
    return bytes < tern_packed_bytes(w) / 8 * 7 ? bytes : 0;
}

/* ── the codes ────────────────────────────────────────────────────────────────────────────────── */

INLINE __m512i rest_of(__m512i a, __m512i b) {
    const __m512i mask = _mm512_set1_epi16((short)0x807f);
    return _mm512_or_si512(_mm512_and_si512(a, mask), tern_swapped(_mm512_and_si512(b, mask)));
}

INLINE __m512i exponents_of(__m512i numbers) {
    return _mm512_and_si512(_mm512_srli_epi16(numbers, 7), _mm512_set1_epi16(255));
}

INLINE __m512i codes_of(__m512i numbers, uint16_t head) {
    __m512i exponents = exponents_of(numbers), codes = _mm512_sub_epi16(exponents, _mm512_set1_epi16(head & 255));
    return head & ZEROS ? _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(exponents, exponents), codes) : codes;
}

static uint16_t code_block(const __m512i *numbers, char *rest, char *exponents) {
    Range range = range_of_none();
    for (int i = 0; i < BLOCK_VECTORS; i++) extend(&range, numbers[i]);
    uint16_t head = head_of(_mm256_min_epu16(half(range.least, 0), half(range.least, 1)),
                            _mm256_min_epu16(half(range.least_above_0, 0), half(range.least_above_0, 1)),
                            _mm256_max_epu16(half(range.most, 0), half(range.most, 1)));
    for (int i = 0; i < BLOCK_VECTORS; i += 4, rest += 128) {
        const __m512i *z = numbers + i;
        _mm512_store_si512(rest, rest_of(z[0], z[1]));
        _mm512_store_si512(rest + 64, rest_of(z[2], z[3]));
        if (head == BYTES) {
            _mm512_store_si512(exponents, _mm512_or_si512(exponents_of(z[0]), _mm512_slli_epi16(exponents_of(z[1]), 8)));
            _mm512_store_si512(exponents + 64, _mm512_or_si512(exponents_of(z[2]), _mm512_slli_epi16(exponents_of(z[3]), 8)));
            exponents += 128;
        } else {
            __m512i codes = _mm512_setzero_si512();
            for (int j = 3; j >= 0; j--) codes = _mm512_or_si512(_mm512_slli_epi16(codes, 4), codes_of(z[j], head));
            _mm512_store_si512(exponents, codes);
            exponents += 64;
        }
    }
    return head;
}

static void code_panel(const void *data, long panel) {
    const Matrix *w = data;
    Coded to = tern_coded_panel(w, panel);
    __m512i *numbers = aligned_alloc(64, tern_panel_bytes(w));
    if (!numbers) abort(); /* as Python does for so little */
    tern_pack_panel(w, panel, numbers);
    for (long b = 0; b < tern_coded_blocks(w); b++) {
        uint16_t head = code_block(numbers + b * BLOCK_VECTORS, (char *)to.rest, (char *)to.exponents);
        ((uint16_t *)to.head)[b] = head;
        to.rest += UNITS_OF_BLOCK * 64, to.exponents += exponent_bytes(head);
    }
    free(numbers);
}

void tern_code(const Matrix *w, const long *sizes, void *to) {
    Matrix coded = *w;
    coded.panels = to;
    long panels = (w->n + PANEL - 1) / PANEL, *index = to;
    index[0] = 0;
    for (long i = 0; i < panels; i++) index[i + 1] = index[i] + sizes[i];
    tern_parallel_for(code_panel, &coded, panels);
}

#else

long tern_coded_bytes(const Matrix *w, long *sizes) {
    (void)w, (void)sizes;
    return 0;
}
void tern_code(const Matrix *w, const long *sizes, void *to) { (void)w, (void)sizes, (void)to; }

#endif
