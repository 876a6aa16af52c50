/* What a tile over an int8 cache multiplies (attention_codes.h), in lanes of four bytes:
 *
 *     query    rounded to 16 bits, a scale per head: q = 256 · high + low, two digits of 8 signed bits
 *     keys     turned to [four dims][key], moved up by 128, as one side of a product has to be unsigned: the query's sum
 *              times 128 is subtracted again
 *     values   [four positions][dim], dims in the order that unpacking within 128 bits leaves
 *
 * Dims are padded with zeros to a multiple of WIDE. AVX-512 only.
 */
#pragma once
#include "attention_tile.h"
#include "transpose.h"

enum { WIDE = 64, MOST_CODED_DIM = 256 };
#define Q_LIMIT 32512.0f /* 127 · 256, so that both digits are signed bytes */
#define LEAST_AMPLITUDE 1e-30f

/* A head's queries, where those of other types would be float32. Of few rows digits are [row][digit][MOST_CODED_DIM]; of
 * many [16 rows][four dims][digit][row]. */
typedef struct {
    float *scale;
    int32_t *moved; /* 128 · the sum of a row */
    int8_t *digits;
} coded_queries;

INLINE coded_queries coded_in(const float *memory, int64_t rows) {
    float *scale = (float *)memory;
    return (coded_queries){scale, (int32_t *)(scale + rows), (int8_t *)(scale + 2 * rows)};
}
_Static_assert(2 * FEW_ROWS + FEW_ROWS * MOST_CODED_DIM / 2 <= HEAD_FLOATS, "few rows");

INLINE int64_t coded_width(int64_t dim) { return (dim + WIDE - 1) / WIDE * WIDE; }

INLINE __m512i load_codes(const char *p, int64_t count) {
    return count >= WIDE ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << count) - 1, p);
}

/* The `dim` numbers at `from` → row `row`, its digits to [digit][MOST_CODED_DIM]. The scale of one that is not finite is NaN. */
INLINE void code_query(coded_queries q, int64_t row, const char *from, int dtype, int64_t dim, int8_t *digits) {
    float x[MOST_CODED_DIM];
    int64_t width = coded_width(dim);
    vi sizes = (vi)splat(LEAST_AMPLITUDE);
    for (int64_t d = 0; d < width; d += LANES) {
        vf v = dim - d > 0 ? load_some(from + d * size_of(dtype), dtype, least(dim - d, LANES)) : (vf){};
        sizes = larger_size(sizes, v);
        store(x + d, v);
    }
    float amplitude = largest_size(sizes), factor = Q_LIMIT / amplitude;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t d = 0; d < width; d += LANES) {
        __m512i code = _mm512_cvtps_epi32((__m512)(load(x + d) * splat(factor)));
        sum = _mm512_add_epi32(sum, code);
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
        _mm_store_si128((__m128i *)(digits + d), _mm512_cvtepi32_epi8(high));
        _mm_store_si128((__m128i *)(digits + MOST_CODED_DIM + d), _mm512_cvtepi32_epi8(code));
    }
    q.scale[row] = amplitude < INFINITY ? amplitude / Q_LIMIT : NAN;
    q.moved[row] = 128 * _mm512_reduce_add_epi32(sum);
}

/* [16 rows][digit][MOST_CODED_DIM] → [four dims][digit][row] */
INLINE void turn_digits(const int8_t *digits, int64_t width, uint32_t *to) {
    for (int64_t digit = 0; digit < 2; digit++)
        for (int64_t d = 0; d < width; d += WIDE) {
            __m512i rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) rows[i] = _mm512_load_si512(digits + (2 * i + digit) * MOST_CODED_DIM + d);
            transpose16(rows);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_store_si512(to + ((d / 4 + i) * 2 + digit) * LANES, rows[i]);
        }
}

/* WIDE dims as they are in memory. While values are mixed, lane 4 l + i of vector v is dim 16 l + 4 v + i. */
INLINE void order_dims(const float *mixed, vf dims[4]) {
    __m512 a[4], b[4];
    for (int i = 0; i < 4; i++) a[i] = (__m512)load(mixed + i * LANES);
    for (int i = 0; i < 4; i += 2) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 1], 0x44);
        b[i + 1] = _mm512_shuffle_f32x4(a[i], a[i + 1], 0xee);
    }
    for (int i = 0; i < 4; i += 2) {
        dims[i] = (vf)_mm512_shuffle_f32x4(b[i / 2], b[i / 2 + 2], 0x88);
        dims[i + 1] = (vf)_mm512_shuffle_f32x4(b[i / 2], b[i / 2 + 2], 0xdd);
    }
}

/* A tile's keys and values, ready to be multiplied. */
typedef struct {
    uint32_t keys[TILE / 4 * MOST_CODED_DIM], values[TILE / 4 * MOST_CODED_DIM];
    float key_scales[TILE], value_scales[TILE];
} coded_tile;

/* to [four dims][TILE keys], moved up */
INLINE void turn_codes(const place *here, int64_t dim, uint32_t *to) {
    const __m512i up = _mm512_set1_epi8(-128);
    for (int64_t d = 0; d < dim; d += WIDE)
        for (int64_t key = 0; key < TILE; key += 16) {
            __m512i rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) rows[i] = _mm512_xor_si512(load_codes(here->k[key + i] + d, dim - d), up);
            transpose16(rows);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_store_si512(to + (d / 4 + i) * TILE + key, rows[i]);
        }
}

/* to [four positions][dim], dims as order_dims finds them. `ahead`: values that are needed next, or NULL. */
INLINE void group_codes(const place *here, const char *const *ahead, int64_t dim, uint32_t *to) {
    int64_t width = coded_width(dim);
    for (int64_t k = 0; k < TILE / 4; k++)
        for (int64_t d = 0; d < dim; d += WIDE) {
            __m512i x[4], y[4];
            for (int i = 0; i < 4; i++) {
                if (ahead) __builtin_prefetch(ahead[4 * k + i] + d, 0, 2);
                x[i] = load_codes(here->v[4 * k + i] + d, dim - d);
            }
            y[0] = _mm512_unpacklo_epi8(x[0], x[1]), y[1] = _mm512_unpackhi_epi8(x[0], x[1]);
            y[2] = _mm512_unpacklo_epi8(x[2], x[3]), y[3] = _mm512_unpackhi_epi8(x[2], x[3]);
            uint32_t *at = to + k * width + d;
            _mm512_store_si512(at, _mm512_unpacklo_epi16(y[0], y[2]));
            _mm512_store_si512(at + LANES, _mm512_unpackhi_epi16(y[0], y[2]));
            _mm512_store_si512(at + 2 * LANES, _mm512_unpacklo_epi16(y[1], y[3]));
            _mm512_store_si512(at + 3 * LANES, _mm512_unpackhi_epi16(y[1], y[3]));
        }
}

/* Of LANES positions, which mostly follow one another in a block. */
INLINE void copy_scales(const attention_layer *layer, const int64_t *row, float *keys, float *values) {
    if (layer->block_size % LANES == 0 && row[LANES - 1] == row[0] + LANES - 1) {
        store(keys, load(layer->key_scales + row[0])), store(values, load(layer->value_scales + row[0]));
        return;
    }
    for (int j = 0; j < LANES; j++) keys[j] = layer->key_scales[row[j]], values[j] = layer->value_scales[row[j]];
}

/* `next`: the tile after it, whose scales and values are asked for, or NULL. */
INLINE void load_tile(const attention_layer *layer, const place *here, const place *next, coded_tile *t) {
    for (int j = 0; j < TILE; j += LANES) copy_scales(layer, here->row + j, t->key_scales + j, t->value_scales + j);
    for (int j = 0; next && j < TILE; j += 8) {
        __builtin_prefetch(layer->key_scales + next->row[j], 0, 2);
        __builtin_prefetch(layer->value_scales + next->row[j], 0, 2);
    }
    turn_codes(here, layer->head_dim, t->keys);
    group_codes(here, next ? next->v : NULL, layer->head_dim, t->values);
}
