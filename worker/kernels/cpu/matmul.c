/* The one entrance, and what all kinds of matrices do at the end of a row. */

#include "matmul.h"
#include "lanes.h"

#define SOON 12 /* rows, whose lines of y lie apart, and are read before they are written */

INLINE void finish(const Matrix *w, const Call *call, int type, long m0, long rows, long n0, long count, const float *sums,
                   long stride) {
    for (long m = m0; m < m0 + rows; m++, sums += stride) {
        long later = ((m + SOON) * w->n + n0) * size_of(type);
        if (m + SOON < m0 + rows) __builtin_prefetch((char *)call->y + later, 1, 3);
        if (m + SOON < m0 + rows && call->add) __builtin_prefetch((const char *)call->add + later, 0, 3);
        for (long i = 0; i < count; i += LANES) {
            long some = count - i < LANES ? count - i : LANES, at = (m * w->n + n0 + i) * size_of(type);
            vf y = load_some(sums + i, F32, some);
            if (w->bias) y += load_some(w->bias + n0 + i, F32, some);
            if (call->add) y += load_some((const char *)call->add + at, type, some);
            store_some((char *)call->y + at, type, some, y);
        }
    }
}

void tern_finish(const Matrix *w, const Call *call, long m0, long rows, long n0, long count, const float *sums, long stride) {
    switch (call->y_type) {
    case F32: finish(w, call, F32, m0, rows, n0, count, sums, stride); break;
    case BF16: finish(w, call, BF16, m0, rows, n0, count, sums, stride); break;
    default: finish(w, call, F16, m0, rows, n0, count, sums, stride);
    }
}

#define MOST_ROWS 1536 /* that are packed at once, see tiles.h: each such piece reads the weights anew */

static void multiply_rows(const Matrix *w, const Call *call) {
    switch (w->kind) {
    case INT4: tern_matmul_int4(w, call); break;
    case INT8_W8A16:
    case NF4:
    case FP8: tern_matmul_converted(w, call); break;
    default: (w->coded ? tern_matmul_coded : tern_matmul_panels)(w, call);
    }
}

void tern_matmul_before(const Matrix *next, const Matrix *w, const void *x, int x_type, long m, long x_stride, const void *add,
                        void *y, int y_type) {
    long pieces = (m + MOST_ROWS - 1) / MOST_ROWS, rows;
    for (long i = 0, m0 = 0; i < pieces; i++, m0 += rows) {
        rows = (m - m0) / (pieces - i);
        long at = m0 * w->n * size_of(y_type);
        Call call = {(const char *)x + m0 * x_stride * size_of(x_type), add ? (const char *)add + at : NULL, (char *)y + at,
                     rows, x_stride, x_type, y_type, i + 1 < pieces ? NULL : next};
        multiply_rows(w, &call);
    }
}

void tern_matmul(const Matrix *w, const void *x, int x_type, long m, long x_stride, const void *add, void *y,
                 int y_type) {
    tern_matmul_before(NULL, w, x, x_type, m, x_stride, add, y, y_type);
}
