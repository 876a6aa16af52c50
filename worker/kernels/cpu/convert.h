/* Weights that are not multiplied as they are stored, see matmul_converted.c. */

#ifndef TERN_CONVERT_H
#define TERN_CONVERT_H

#include "panels.h"

/* `units` of a panel → units of a panel of bf16 pairs, or of float32. */
typedef void (*Convert)(const uint32_t *panel, long units, int pairs, uint32_t *to);

Convert tern_converter(int kind); /* INT8_W8A16, FP8 or NF4 */

#endif
