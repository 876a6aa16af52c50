/* y = x Wᵀ (+ bias) (+ add), see ../matmul.py, which mirrors these structures. */

#ifndef TERN_MATMUL_H
#define TERN_MATMUL_H

#include "numbers.h"

enum { INT8 = 3, INT8_W8A16, INT4, NF4, FP8 };

typedef struct {
    const void *weight;
    const void *scales; /* of the matrix' type; NULL: none */
    const float *zeros;
    long rows;
    long stride;       /* bytes from row to row of the weight */
    long scale_rows;   /* rows that share a scale: of kinds with floats as x */
    long scale_stride; /* scales from one such row to the next */
} Part;

typedef struct {
    const Part *parts;
    const void *panels; /* the weights of all parts, see panels.h; NULL: where the parts say */
    const float *bias; /* [n], or NULL */
    long num_parts, n, k;
    long group; /* columns that share a scale */
    int kind;
    int scale_type; /* F32; of INT4 also BF16 */
    int coded;      /* panels are those of coded.h */
} Matrix;

typedef struct {
    const void *x; /* [m][k] */
    const void *add; /* [m][n] of y's type, or NULL */
    void *y; /* [m][n] */
    long m, x_stride; /* elements from row to row */
    int x_type, y_type;
    const Matrix *next; /* which is probably multiplied soon: whoever waits calls for its weights; or NULL */
} Call;

/* y[m0 … m0+rows)[n0 … n0+count) from its sums, whose rows are `stride` apart. */
void tern_finish(const Matrix *w, const Call *call, long m0, long rows, long n0, long count, const float *sums, long stride);

/* The part that holds row n of the matrix, and which of its own it is. Rows behind the last are the last one:
   tiles may compute them, and drop them. */
INLINE const Part *tern_part_of(const Matrix *w, long n, long *row) {
    if (n >= w->n) n = w->n - 1;
    const Part *part = w->parts;
    while (n >= part->rows) n -= part++->rows;
    *row = n;
    return part;
}

/* Of int4, whose blocks are 16 rows of a part: the part that holds the block-th of all, which of its own it is, and the matrix' row it begins at. */
INLINE const Part *tern_part_of_block(const Matrix *w, long block, long *own, long *n) {
    const Part *part = w->parts;
    long at = 0;
    while (block >= (part->rows + 15) / 16) {
        block -= (part->rows + 15) / 16;
        at += part++->rows;
    }
    *own = block;
    *n = at + block * 16;
    return part;
}

/* A block of a product: rows m0 … m0 + rows - 1 of y, of its columns (or what stands for some of them) first … last - 1. */
typedef void (*tern_block)(const void *product, long m0, long rows, long first, long last);

/* Runs all blocks of m rows by all columns. Rows are cut into chunks of at most `most_rows`. */
void tern_multiply_blocks(tern_block multiply, const void *product, const Matrix *w, const Matrix *next, long m, long most_rows);

/* Which of the cache lines that a step of a tile reads it asks for ahead, as bits: the tiles of one stretch of weights
   share the asking. If the first did it all, it would wait for memory, and memory for the others. */
INLINE int tern_lines_of(long tile, long tiles, int lines) {
    int own = 0;
    for (int j = 0; j < lines; j++)
        if (j % tiles == tile) own |= 1 << j;
    return own;
}

/* y [m][n] = x Wᵀ (+ bias) (+ add). `next`: see Call. */
void tern_matmul_before(const Matrix *next, const Matrix *w, const void *x, int x_type, long m, long x_stride, const void *add,
                        void *y, int y_type);
/* The same, not knowing what comes. */
void tern_matmul(const Matrix *w, const void *x, int x_type, long m, long x_stride, const void *add, void *y,
                 int y_type);

void tern_matmul_panels(const Matrix *w, const Call *call);
void tern_matmul_coded(const Matrix *w, const Call *call);
void tern_matmul_converted(const Matrix *w, const Call *call);
void tern_matmul_int4(const Matrix *w, const Call *call);

#endif
