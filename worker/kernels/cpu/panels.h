/* How weights lie (all but int4, which has blocks of its own): in panels of PANEL rows of W,

       [panel][unit][row of the panel]

   where a unit is what one lane takes at once: one number, two of bf16 where there is AVX512-BF16, four of int8 and fp8, eight
   of nf4 (byte j: columns j and j + 4). So weights are one stream for any number of rows of x, and sums need not be gathered
   from a vector's lanes. N and K are filled up with zeros. */

#ifndef TERN_PANELS_H
#define TERN_PANELS_H

#include "lanes.h"
#include "matmul.h"
#include "simd_int.h"

#if defined(TERN_AVX512)
#define PANEL 32
#define PANEL_ROWS 12 /* of x that a tile takes at most: as many sums as there are registers for */
#else
#define PANEL 16
#define PANEL_ROWS 6
#endif
#if defined(TERN_AVX512) && defined(__AVX512BF16__)
#define BF16_PAIRS 1
#else
#define BF16_PAIRS 0
#endif

/* Numbers and bytes of a unit. */
INLINE long tern_unit_numbers(int kind) {
    switch (kind) {
    case F32:
    case F16: return 1;
    case BF16: return BF16_PAIRS ? 2 : 1;
    case NF4: return 8;
    default: return 4;
    }
}
INLINE long tern_unit_bytes(int kind) { return kind == F16 || (kind == BF16 && !BF16_PAIRS) ? 2 : 4; }

INLINE long tern_units(const Matrix *w) {
    long numbers = tern_unit_numbers(w->kind);
    return (w->k + numbers - 1) / numbers;
}

INLINE long tern_panel_bytes(const Matrix *w) { return tern_units(w) * PANEL * tern_unit_bytes(w->kind); }

/* `units` of a panel, or of two, the second `next` units behind the first, by those of `rows` rows of x, as tiles.h has
   them; sums[panel][row][PANEL] are set, or added to. Two panels take few rows, see matmul_panels.c.
   `ahead`: lines that one panel calls into L2 meanwhile, one each `step` bytes, and the next where a step is more than one. */
typedef void (*Tile)(int rows, int panels, const void *panel, long next, const uint32_t *x, long units, const char *ahead, long step,
                     void *sums, int first);
Tile tern_panel_tile(int kind); /* F32, F16, BF16 or INT8 */

/* What the packed matrix takes, in bytes; and packs it. The matrix given has its parts as a checkpoint has them. */
long tern_packed_bytes(const Matrix *w);
void tern_pack(const Matrix *w, void *to);
void tern_pack_panel(const Matrix *w, long panel, void *to);

#endif
