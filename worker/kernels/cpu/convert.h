/* Stretches of a row of weights in float32 or bf16: of kinds that are not multiplied as they are stored. */

#ifndef TERN_CONVERT_H
#define TERN_CONVERT_H

#include "matmul.h"

/* Columns k … k+count) of a part's row → to, of `type` (F32 or BF16), with room for a vector more. k is a multiple of 64. */
typedef void (*Convert)(const Matrix *w, const Part *part, long row, long k, long count, void *to, int type);

Convert tern_converter(int kind); /* NULL for kinds that need none */

#endif
