/* What LoRA adapters add to a product: y += s · (x Aᵀ) Bᵀ, with A, B and s of each row's own adapter.
   See ../lora.py, which mirrors these structures. */
#pragma once
#include <stdint.h>

typedef struct {
    const void *b;     /* [rank][columns of the segment]: B transposed */
    int64_t at, rank;  /* which of the adapter's ranks */
} Up;

typedef struct {
    const void *a;       /* [rank][k], of all segments */
    const float *scales; /* [rank] */
    const Up *ups;       /* [segments] */
    int64_t rank;        /* of all segments together; 0: it leaves this matrix as it is */
} Adapter;

typedef struct {
    const Adapter *adapters;
    const int64_t *starts; /* [segments + 1] columns of y: each of the checkpoint's matrices is a segment */
    int64_t segments, k, n, most_rank;
    int64_t type; /* of A and B */
} Lora;

/* adapters int32 [m], -1: none; order int32 [m]: the rows, those with one adapter beside each other; x [m][k] of rows
   `x_stride` apart; y [m][n]; h float [m][most_rank], scratch. */
void tern_lora(const Lora *lora, const int32_t *adapters, const int32_t *order, const void *x, int64_t x_type, int64_t m,
               int64_t x_stride, void *y, int64_t y_type, float *h);
