/* int8, fp8 (e4m3fn) and nf4 weights of a panel as what tiles multiply, without their scales: bf16 has all of int8's and fp8's
   values, and rounds nf4's 16. */

#include "convert.h"

#include <pthread.h>

#define AHEAD (4 << 10) /* bytes of weights that are called for early */

static const float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* Four bits of exponent (bias 7), three of mantissa, moved to where float32 has them (bias 127), the exponent put right by a
   multiplication. S.1111.111 is NaN. */
INLINE float fp8_value(uint32_t code) {
    uint32_t size = code & 0x7f, sign = code & 0x80;
    return bits_to_float(size == 0x7f ? 0x7fc00000 : float_to_bits(bits_to_float(size << 20) * 0x1p120f) | sign << 24);
}

INLINE float value_of(int kind, uint32_t code) {
    return kind == INT8_W8A16 ? (float)(int8_t)code : kind == FP8 ? fp8_value(code) : NF4_VALUES[code & 15];
}

/* Columns of a unit in the order of bytes: 0 1 2 3, or of nf4 0 1 2 3 in the low halves, 4 5 6 7 in the high ones. */
INLINE void to_floats(const int kind, const uint32_t *panel, long units, float *to) {
    for (long u = 0; u < units; u++, panel += PANEL)
        for (int shift = 0; shift < (kind == NF4 ? 8 : 1); shift += 4)
            for (int j = 0; j < 4; j++, to += PANEL)
                for (int r = 0; r < PANEL; r++) to[r] = value_of(kind, panel[r] >> (8 * j + shift) & 0xff);
}

#if BF16_PAIRS

#if defined(__AVX512VBMI__)

/* What each code is in bf16: low and high bytes. */
static struct {
    _Alignas(64) uint8_t low[256], high[256];
} tables[FP8 + 1];

static void fill_tables(void) {
    const int kinds[] = {INT8_W8A16, NF4, FP8};
    for (int i = 0; i < 3; i++)
        for (uint32_t code = 0; code < 256; code++) {
            bf16 value = float_to_bf16(value_of(kinds[i], code));
            tables[kinds[i]].low[code] = value & 0xff, tables[kinds[i]].high[code] = value >> 8;
        }
}

static void prepare(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
}

typedef struct {
    __m512i part[4];
} Bytes256;

INLINE Bytes256 load_table(const uint8_t *of) {
    Bytes256 t;
    for (int i = 0; i < 4; i++) t.part[i] = _mm512_load_si512(of + 64 * i);
    return t;
}

INLINE __m512i look_up(Bytes256 t, __m512i codes) {
    __m512i lower = _mm512_permutex2var_epi8(t.part[0], codes, t.part[1]);
    __m512i upper = _mm512_permutex2var_epi8(t.part[2], codes, t.part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper);
}

/* Four bytes a lane, low and high → the pairs of its first two numbers, and of its last two. */
INLINE void store_pairs(__m512i low, __m512i high, uint32_t *to) {
    __m512 a = (__m512)_mm512_unpacklo_epi8(low, high), b = (__m512)_mm512_unpackhi_epi8(low, high);
    _mm512_storeu_ps(to, _mm512_shuffle_ps(a, b, 0x88));
    _mm512_storeu_ps(to + PANEL, _mm512_shuffle_ps(a, b, 0xdd));
}

INLINE void to_pairs(const int kind, const uint32_t *panel, long units, uint32_t *to) {
    Bytes256 low = load_table(tables[kind].low), high = load_table(tables[kind].high);
    __m512i low16 = _mm512_broadcast_i32x4(_mm512_castsi512_si128(low.part[0]));
    __m512i high16 = _mm512_broadcast_i32x4(_mm512_castsi512_si128(high.part[0]));
    for (long u = 0; u < units; u++, panel += PANEL, to += (kind == NF4 ? 4 : 2) * PANEL)
        for (int r = 0; r < PANEL; r += 16) {
            __builtin_prefetch((const char *)(panel + r) + AHEAD, 0, 3);
            __m512i codes = _mm512_loadu_si512(panel + r);
            if (kind == NF4) {
                __m512i first = _mm512_and_si512(codes, _mm512_set1_epi8(15));
                __m512i second = _mm512_and_si512(_mm512_srli_epi32(codes, 4), _mm512_set1_epi8(15));
                store_pairs(_mm512_shuffle_epi8(low16, first), _mm512_shuffle_epi8(high16, first), to + r);
                store_pairs(_mm512_shuffle_epi8(low16, second), _mm512_shuffle_epi8(high16, second), to + 2 * PANEL + r);
            } else {
                store_pairs(look_up(low, codes), look_up(high, codes), to + r);
            }
        }
}

#else

static void prepare(void) {}

INLINE void to_pairs(const int kind, const uint32_t *panel, long units, uint32_t *to) {
    for (long u = 0; u < units; u++, panel += PANEL)
        for (int shift = 0; shift < (kind == NF4 ? 8 : 1); shift += 4)
            for (int j = 0; j < 4; j += 2, to += PANEL)
                for (int r = 0; r < PANEL; r++) {
                    uint32_t codes = panel[r] >> (8 * j + shift);
                    to[r] = float_to_bf16(value_of(kind, codes & 0xff)) | (uint32_t)float_to_bf16(value_of(kind, codes >> 8 & 0xff)) << 16;
                }
}

#endif
#else

static void prepare(void) {}

INLINE void to_pairs(const int kind, const uint32_t *panel, long units, uint32_t *to) {
    (void)kind, (void)panel, (void)units, (void)to; /* nobody multiplies pairs here */
}

#endif

#define CONVERT(NAME, KIND)                                                        \
    static void NAME(const uint32_t *panel, long units, int pairs, uint32_t *to) { \
        if (pairs) to_pairs(KIND, panel, units, to);                               \
        else to_floats(KIND, panel, units, (float *)to);                           \
    }
CONVERT(from_int8, INT8_W8A16)
CONVERT(from_fp8, FP8)
CONVERT(from_nf4, NF4)

Convert tern_converter(int kind) {
    prepare();
    return kind == INT8_W8A16 ? from_int8 : kind == FP8 ? from_fp8 : from_nf4;
}
