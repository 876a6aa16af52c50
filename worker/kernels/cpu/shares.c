/* A product's blocks, shared out among threads; and what they read first of the next one's weights. */

#include "coded.h"
#include "panels.h"
#include "pool.h"

#define MOST_SHARES 1024  /* at least two for each thread that there can be */
#define INT4_BYTES (32 << 10)
#define AHEAD (256 << 10) /* bytes that a thread calls into its second cache, which the product before it needs as well */

/* How a matrix' columns of y (or what stands for some of them) are shared out among threads, in multiples of `unit`: long
   stretches first, as within one each thread asks memory ahead for what it needs itself, then ever shorter ones down to
   about `least`, so that all end together. */
typedef struct {
    long count, unit, least;
} Shares;

static Shares shares_of(const Matrix *w) {
    if (w->kind != INT4) return (Shares){w->n, PANEL, PANEL};
    Shares blocks = {0, 2, INT4_BYTES / (w->k * 8)};
    for (long i = 0; i < w->num_parts; i++) blocks.count += (w->parts[i].rows + 15) / 16;
    return blocks;
}

typedef struct {
    tern_block multiply;
    const void *product;
    long m, rows, row_chunks, num_shares;
    long shares[MOST_SHARES + 1]; /* where each begins, and the end */
} Blocks;

/* Where shares begin, of the first `most` at most, and the end; returns how many there are. */
static long share(const Matrix *w, long most, long *begins) {
    Shares of = shares_of(w);
    long threads = tern_get_threads(), at = 0, count = 0;
    while (at < of.count && count < most) {
        long left = of.count - at, room = MOST_SHARES - count, pieces = 2 * threads < room ? 2 * threads : room;
        long size = (left / pieces > of.least ? left / pieces : of.least) / of.unit * of.unit;
        if (size < of.unit) size = of.unit;
        if (threads == 1 || size > left || room == 1) size = left;
        begins[count++] = at;
        at += size;
    }
    begins[count] = at;
    return count;
}

static void multiply_block(const void *data, long index) {
    const Blocks *b = data;
    long m0 = index % b->row_chunks * b->rows, i = index / b->row_chunks;
    long rows = b->m - m0 < b->rows ? b->m - m0 : b->rows;
    b->multiply(b->product, m0, rows, b->shares[i], b->shares[i + 1]);
}

/* ── ahead ────────────────────────────────────────────────────────────────────────────────────── */

static Stretch stretch(const char *begin, const char *end, long most) {
    return (Stretch){begin, end - begin < most ? end - begin : most};
}

static void weights_of(const Matrix *w, long begin, long end, Stretch to[2]) {
    to[0] = to[1] = (Stretch){NULL, 0};
    if (w->kind == INT4) {
        long own, n, blocks;
        const Part *part = tern_part_of_block(w, begin, &own, &n);
        blocks = (part->rows + 15) / 16 - own;
        const char *first = (const char *)part->weight + own * part->stride;
        to[0] = stretch(first, first + (end - begin < blocks ? end - begin : blocks) * part->stride, AHEAD);
        return;
    }
    long panel = begin / PANEL, last = (end + PANEL - 1) / PANEL;
#if BF16_PAIRS
    if (w->coded) {
        Coded of = tern_coded_panel(w, panel), behind = tern_coded_panel(w, last);
        to[0] = stretch(of.rest, behind.rest, AHEAD * 2 / 3);
        to[1] = stretch(of.exponents, behind.exponents, AHEAD / 3);
        return;
    }
#endif
    const char *panels = w->panels;
    to[0] = stretch(panels + panel * tern_panel_bytes(w), panels + last * tern_panel_bytes(w), AHEAD);
}

/* Threads mostly begin with the shares in their order. */
static void read_ahead(const Matrix *w) {
    long threads = tern_get_threads(), begins[MOST_SHARES + 1];
    long count = share(w, threads, begins);
    for (long i = 0; i < count; i++) {
        Stretch weights[2];
        weights_of(w, begins[i], begins[i + 1], weights);
        tern_read_ahead((int)i, weights);
    }
}

void tern_multiply_blocks(tern_block multiply, const void *product, const Matrix *w, const Matrix *next, long m, long most_rows) {
    Blocks blocks;
    blocks.multiply = multiply, blocks.product = product, blocks.m = m;
    blocks.row_chunks = (m + most_rows - 1) / most_rows;
    blocks.rows = (m + blocks.row_chunks - 1) / blocks.row_chunks;
    blocks.num_shares = share(w, MOST_SHARES, blocks.shares);
    if (next) read_ahead(next);
    tern_parallel_for(multiply_block, &blocks, blocks.row_chunks * blocks.num_shares);
}
