/* Norms and activations of rows, see rows.c. */
#pragma once
#include <stdint.h>

int tern_norm(int64_t kind, const void *x, const void *weight, const void *bias, const void *add, void *out,
              int64_t dtype, int64_t weight_dtype, int64_t num_rows, int64_t size, double eps);

void tern_activate(int64_t kind, const void *gate, const void *up, void *out, int64_t dtype, int64_t num_rows,
                   int64_t size, int64_t stride);
