/* Many rows of x by panels of 32 rows of W, whose sums have the order of matmul_converted.c's tiles, bit for bit.

   A unit is four bytes: a float, or a pair of bf16. Such a tile adds up the units lane, lane + 16, lane + 32, … of
   a block of columns in each of its 16 lanes, and then the lanes, as a tree. Here lanes are rows of W, so that no
   sum has to be gathered from a vector and little is read for what is computed: a block is multiplied lane by lane,

       [lane, in the order of the tree][step][row]     units, both of 32 rows of W and of the rows of x of a tile

   and the sums of a lane wait on a stack until those are there that they are added to. AVX512-BF16 only. */

#pragma once
#include "lanes.h"
#include "matmul.h"
#include "transpose.h"

#define HAS_PANELS 1
#define PANEL 32
#define PANEL_MR 12
#define MOST_TILES 64 /* whose sums are kept: 98 kB */
#define MANY 96       /* rows of x: packing W costs about as much as ten, a lane's sums on the stack another tenth of all */

/* The tree of sum4: ((l0 + l2) + (l1 + l3)) of four neighbours, and those sums likewise. */
static const int LANE_PLACE[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};

/* Packs `count` rows of `bytes` each; units of a lane are `lane_stride` apart, of a step `step_stride`. */
INLINE void pack_rows(const void *const *rows, const int count, long bytes, long lane_stride, long step_stride, uint32_t *to) {
    for (long at = 0; at < bytes; at += 64, to += step_stride) {
        __m512i units[16];
        __mmask64 some = bytes - at >= 64 ? ~0ull : (1ull << (bytes - at)) - 1;
        _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++)
            units[r] = r < count ? _mm512_maskz_loadu_epi8(some, (const char *)rows[r] + at) : _mm512_setzero_si512();
        transpose16(units);
        _Pragma("GCC unroll 16") for (int lane = 0; lane < 16; lane++)
            _mm512_mask_storeu_epi32(to + LANE_PLACE[lane] * lane_stride, (1u << count) - 1, units[lane]);
    }
}

/* Tiles share rows of x evenly: MANY or more make 10 to 12 each. */
INLINE long first_row(long m, long tile) {
    long tiles = (m + PANEL_MR - 1) / PANEL_MR, more = m % tiles;
    return tile * (m / tiles) + (tile < more ? tile : more);
}

/* Products are instructions as they stand: with so many sums GCC 12 copies and spills them around its intrinsic. */
INLINE void panel_tile(const int rows, const int pairs, const uint32_t *panel, const uint32_t *x, long steps, float *sums,
                       int first) {
    vf waiting[5][PANEL_MR][2];
    for (int lane = 0, height = 0; lane < 16; lane++, panel += PANEL) {
        vf acc[PANEL_MR][2];
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) acc[i][0] = acc[i][1] = (vf){};
        for (long s = 0; s < steps; s++, panel += PANEL, x += rows) {
            vf b0 = load((const float *)panel), b1 = load((const float *)panel + 16);
            IN_REGISTER(b0);
            IN_REGISTER(b1);
            _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {
                vf a;
                __asm__("vbroadcastss %1, %0" : "=v"(a) : "m"(x[i]));
                if (pairs) {
                    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc[i][0]) : "v"(a), "v"(b0));
                    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc[i][1]) : "v"(a), "v"(b1));
                } else {
                    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc[i][0]) : "v"(a), "v"(b0));
                    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc[i][1]) : "v"(a), "v"(b1));
                }
            }
        }
        for (int done = lane; done & 1; done >>= 1) {
            height--;
            _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {
                acc[i][0] = waiting[height][i][0] + acc[i][0];
                acc[i][1] = waiting[height][i][1] + acc[i][1];
            }
        }
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {
            waiting[height][i][0] = acc[i][0];
            waiting[height][i][1] = acc[i][1];
        }
        height++;
    }
    for (int i = 0; i < rows; i++)
        for (int b = 0; b < 2; b++) {
            vf sum = waiting[0][i][b];
            if (!first) sum = sum + load(sums + PANEL * i + 16 * b);
            store(sums + PANEL * i + 16 * b, sum);
        }
}

typedef void (*PanelTile)(int, const uint32_t *, const uint32_t *, long, float *, int);

#define TILE_OF(N, PAIRS) case N: panel_tile(N, PAIRS, panel, x, steps, sums, first); break;
#define PANEL_TILE(NAME, PAIRS)                                                                                 \
    static void NAME(int rows, const uint32_t *panel, const uint32_t *x, long steps, float *sums, int first) {  \
        switch (rows) {                                                                                         \
            TILE_OF(10, PAIRS) TILE_OF(11, PAIRS) TILE_OF(12, PAIRS)                                            \
        }                                                                                                       \
    }
PANEL_TILE(panel_bf16, 1)
PANEL_TILE(panel_f32, 0)
