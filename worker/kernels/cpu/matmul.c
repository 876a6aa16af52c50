/* The one entrance, and what all kinds of matrices do at the end of a row. */

#include "matmul.h"
#include "pool.h"

void tern_finish(const Matrix *w, const Call *call, long m, long n0, long count, const float *sums) {
    float row[count];
    long at = m * w->n + n0;
    memcpy(row, sums, count * sizeof *row);
    if (w->bias)
        for (long i = 0; i < count; i++) row[i] += w->bias[n0 + i];
    switch (call->y_type) {
    case F32: {
        float *y = (float *)call->y + at;
        if (call->add)
            for (long i = 0; i < count; i++) row[i] += ((const float *)call->add)[at + i];
        memcpy(y, row, count * sizeof *row);
        break;
    }
    case BF16: {
        bf16 *y = (bf16 *)call->y + at;
        if (call->add)
            for (long i = 0; i < count; i++) row[i] += bf16_to_float(((const bf16 *)call->add)[at + i]);
        for (long i = 0; i < count; i++) y[i] = float_to_bf16(row[i]);
        break;
    }
    default: {
        f16 *y = (f16 *)call->y + at;
        if (call->add)
            for (long i = 0; i < count; i++) row[i] += f16_to_float(((const f16 *)call->add)[at + i]);
        for (long i = 0; i < count; i++) y[i] = float_to_f16(row[i]);
    }
    }
}

void tern_share(Shares *shares, long total, long unit, long least) {
    long threads = tern_get_threads(), at = 0;
    shares->count = 0;
    while (at < total) {
        long left = total - at, size = left / (2 * threads);
        size = (size > least ? size : least) / unit * unit;
        if (size < unit) size = unit;
        if (threads == 1 || size > left || shares->count == MOST_SHARES - 1) size = left;
        shares->starts[shares->count++] = at;
        at += size;
    }
    shares->starts[shares->count] = total;
}

void tern_matmul(const Matrix *w, const void *x, int x_type, long m, long x_stride, const void *add, void *y,
                 int y_type) {
    Call call = {x, add, y, m, x_stride, x_type, y_type};
    if (w->kind == INT8)
        tern_matmul_int8(w, &call);
    else if (w->kind == INT4)
        tern_matmul_int4(w, &call);
    else
        tern_matmul_float(w, &call);
}
