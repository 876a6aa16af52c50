/* Rows of x in 8 bits: x ≈ code · scale, one scale per group of columns (or per row). */

#ifndef TERN_ACTIVATIONS_H
#define TERN_ACTIVATIONS_H

#include "matmul.h"

typedef struct {
    int8_t *codes; /* [m][stride], zeros behind the last column */
    float *scales; /* [m][groups] */
    int32_t *moved; /* [m][groups], what weights that are larger by `moved` put into a sum: -moved · sum of codes */
    long stride, groups;
} Activations;

/* Valid until the calling thread's next call. A NaN or an infinity makes the scale of its group NaN. */
Activations tern_quantize_rows(const Call *call, long k, long group, int moved);

#endif
