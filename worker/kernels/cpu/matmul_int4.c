/* int4 weights whose groups of columns share a scale (and a zero), int8 activations with a scale per group.

       y[m][n] = sum_g w_scale[n][g] · x_scale[m][g] · sum_{k in g} (code[n][k] - zero[n][g]) · x[m][k]

   The sum within a group is an exact integer; groups are added up in float32, one after the other.
   Weights are packed for 16 rows, so that no sum has to be gathered from the lanes of a vector:

       [block of 16 rows][8 columns][row][4 bytes]     byte j: columns j (low nibble) and j + 4 (high)

   and so are the scales (float or bf16) and zeros: [block][group][row]. A tile is MR rows of x by two blocks, and reads
   the codes of x as [tile][4 columns][row][4 bytes]. */

#include "activations.h"
#include "lanes.h"
#include "pool.h"
#include "simd_int.h"
#include "tiles.h"

#define MR 6
#define MOST_TILES 32 /* of x per chunk */
#define ZERO 8

typedef struct {
    const Matrix *w;
    const Call *call;
    Activations x;
    Tiles tiles; /* its codes */
} Product;

typedef struct {
    const uint8_t *weight;
    const void *scales;
    const float *zeros;
} Block;

INLINE f32x16 load16(const float *p) {
    f32x16 a;
    memcpy(&a, p, sizeof a);
    return a;
}

/* 16 scales, the first of which is number `at`. */
INLINE f32x16 load_scales(const void *scales, int type, long at) {
    if (type == F32) return load16((const float *)scales + at);
    f32x16 a;
    for (int i = 0; i < 16; i += LANES) {
        vf some = load_bf16((const bf16 *)scales + at + i);
        memcpy((float *)&a + i, &some, sizeof some);
    }
    return a;
}

INLINE void tile(const int rows, const int blocks, const Block *block, const Matrix *w, const Activations *x,
                 const uint32_t *codes, long m, int ahead, float *to, long stride) {
    const float *x_scales = x->scales + m * x->groups;
    const int32_t *moved = x->moved + m * x->groups;
    f32x16 total[MR][2];
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++) total[i][b] = (f32x16){0};
    for (long g = 0; g < x->groups; g++) {
        long begin = g * w->group, end = begin + w->group < w->k ? begin + w->group : w->k;
        ints acc[MR][2];
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {
            ints begin = ints_set(0);
            if (!block[0].zeros) begin = ints_set(moved[i * x->groups + g]);
            _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++) acc[i][b] = begin;
        }
        for (long k = begin; k < end; k += 8, codes += 2 * rows) {
            bytes low[2], high[2];
            _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++) {
                const uint8_t *at = block[b].weight + k * 8;
                if (ahead & 1 << b) __builtin_prefetch(at + w->k * 8 * blocks, 0, 2);
                bytes both = bytes_load(at);
                low[b] = low_nibbles(both), high[b] = high_nibbles(both);
            }
            _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {
                bytes first = bytes_repeat(codes + i), second = bytes_repeat(codes + rows + i);
                _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++)
                    acc[i][b] = dot_u4(dot_u4(acc[i][b], low[b], first), high[b], second);
            }
        }
        _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++) {
            f32x16 scales = load_scales(block[b].scales, w->scale_type, g * 16);
            _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) {
                f32x16 sum = ints_to_float(acc[i][b]);
                if (block[b].zeros) sum += load16(block[b].zeros + g * 16) * (moved[i * x->groups + g] * (1.0f / ZERO));
                total[i][b] += sum * (scales * x_scales[i * x->groups + g]);
            }
        }
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int b = 0; b < blocks; b++)
            memcpy(to + i * stride + 16 * b, &total[i][b], sizeof total[i][b]);
}

#define TILES(BLOCKS)                                                                        \
    switch (rows) {                                                                          \
    case 1: tile(1, BLOCKS, block, w, x, codes, m, ahead, to, stride); break;                \
    case 2: tile(2, BLOCKS, block, w, x, codes, m, ahead, to, stride); break;                \
    case 3: tile(3, BLOCKS, block, w, x, codes, m, ahead, to, stride); break;                \
    case 4: tile(4, BLOCKS, block, w, x, codes, m, ahead, to, stride); break;                \
    case 5: tile(5, BLOCKS, block, w, x, codes, m, ahead, to, stride); break;                \
    case 6: tile(6, BLOCKS, block, w, x, codes, m, ahead, to, stride); break;                \
    }

static void two_blocks(int rows, const Block *block, const Matrix *w, const Activations *x, const uint32_t *codes,
                       long m, int ahead, float *to, long stride) {
    TILES(2)
}

static void one_block(int rows, const Block *block, const Matrix *w, const Activations *x, const uint32_t *codes,
                      long m, int ahead, float *to, long stride) {
    TILES(1)
}

static void multiply_blocks(const void *product, long tile0, long tiles, long first, long last) {
    const Product *p = product;
    const Matrix *w = p->w;
    long m0 = tern_first_row(&p->tiles, tile0), rows = tern_first_row(&p->tiles, tile0 + tiles) - m0;
    float sums[MOST_TILES * MR][32];
    for (long b = first; b < last;) {
        int pair = last - b >= 2 ? 2 : 1;
        Block block[2];
        long n[2], count[2];
        for (int i = 0; i < pair; i++) {
            long own;
            const Part *part = tern_part_of_block(w, b + i, &own, &n[i]);
            block[i].weight = (const uint8_t *)part->weight + own * part->stride;
            block[i].scales = (const char *)part->scales + own * 16 * p->x.groups * size_of(w->scale_type);
            block[i].zeros = part->zeros ? part->zeros + own * 16 * p->x.groups : NULL;
            count[i] = part->rows - own * 16 < 16 ? part->rows - own * 16 : 16;
        }
        if (pair == 2 && !block[0].zeros != !block[1].zeros) pair = 1;
        for (long t = 0; t < tiles; t++) {
            long m = tern_first_row(&p->tiles, tile0 + t), some = tern_first_row(&p->tiles, tile0 + t + 1) - m;
            int ahead = b + pair < last ? tern_lines_of(t, tiles, pair) : 0;
            (pair == 2 ? two_blocks : one_block)((int)some, block, w, &p->x, p->tiles.units + m * p->tiles.columns, m, ahead,
                                                 sums[m - m0], 32);
        }
        if (pair == 2 && n[1] == n[0] + 16)
            tern_finish(w, p->call, m0, rows, n[0], 16 + count[1], sums[0], 32);
        else
            for (int i = 0; i < pair; i++) tern_finish(w, p->call, m0, rows, n[i], count[i], sums[0] + 16 * i, 32);
        b += pair;
    }
}

void tern_matmul_int4(const Matrix *w, const Call *call) {
    Product p = {w, call, tern_quantize_rows(call, w->k, w->group, ZERO), {0}};
    p.tiles = tern_tiles_of_codes(&p.x, call->m, MR);
    tern_multiply_blocks(multiply_blocks, &p, w, call->next, p.tiles.count, MOST_TILES);
}
