/* How weights lie that are multiplied as they are stored: f32, f16, bf16 and int8 in panels of PANEL rows,

       [panel][unit][row of the panel]

   where a unit is what one lane takes at once: one number, two of bf16 where there is AVX512-BF16, four of int8.
   So weights are one stream for any number of rows of x, and sums need not be gathered from a vector's lanes.
   K and N are filled up with zeros. */

#ifndef TERN_PANELS_H
#define TERN_PANELS_H

#include "lanes.h"
#include "matmul.h"
#include "simd_int.h"

#if defined(TERN_AVX512)
#define PANEL 32
#else
#define PANEL 16
#endif
#if defined(TERN_AVX512) && defined(__AVX512BF16__)
#define BF16_PAIRS 1
#else
#define BF16_PAIRS 0
#endif

/* Numbers and bytes of a unit. */
INLINE long tern_unit_numbers(int kind) { return kind == INT8 ? 4 : kind == BF16 && BF16_PAIRS ? 2 : 1; }
INLINE long tern_unit_bytes(int kind) { return kind == F32 || kind == INT8 || (kind == BF16 && BF16_PAIRS) ? 4 : 2; }

INLINE long tern_units(const Matrix *w) {
    long numbers = tern_unit_numbers(w->kind);
    return (w->k + numbers - 1) / numbers;
}

INLINE long tern_panel_bytes(const Matrix *w) { return tern_units(w) * PANEL * tern_unit_bytes(w->kind); }

/* What the packed matrix takes, in bytes; and packs it. The matrix given has its parts as a checkpoint has them. */
long tern_packed_bytes(const Matrix *w);
void tern_pack(const Matrix *w, void *to);

#endif
