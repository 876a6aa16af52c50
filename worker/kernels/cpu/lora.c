/* LoRA adapters of a batch, each row with its own (Chen et al., "Punica", 2023). Sums are float32.

   shrink   h[row][r] = s[r] · (A[r] · x[row])           A of the row's adapter, all segments' ranks
   expand   y[row][c] += Σ_r B[c][r] h[row][r]           r of the segment of column c

   Rows with one adapter, up to ROWS of them, read its matrices together. What a row gets does not depend on that: its
   sums go along K in vectors, and along the ranks one by one, in every company. */

#include "lora.h"
#include "elementwise.h"

#if defined(TERN_AVX512) || defined(TERN_NEON)
#define ROWS 4
#else
#define ROWS 2
#endif
#define RANKS 4
#define COLUMNS 512 /* of y, a multiple of LANES */

typedef struct {
    const Lora *lora;
    const int32_t *adapters, *order;
    const char *x;
    char *y;
    float *h;
    int64_t m, x_stride;
    int x_type, y_type;
    int64_t pieces; /* of each group of rows, in this phase */
    int64_t units, at_once;
} Job;

/* ── shrink ───────────────────────────────────────────────────────────────────────────────────── */

INLINE void shrink(const Job *job, int type, int x_type, const int32_t *row, int rows, const Adapter *adapter,
                   int64_t rank) {
    int64_t k = job->lora->k, a_size = size_of(type), x_size = size_of(x_type);
    int ranks = adapter->rank - rank < RANKS ? (int)(adapter->rank - rank) : RANKS;
    const char *a = (const char *)adapter->a + rank * k * a_size;
    const char *x[ROWS];
    for (int i = 0; i < rows; i++) x[i] = job->x + row[i] * job->x_stride * x_size;
    vf sums[ROWS][RANKS] = {};
    for (int64_t at = 0; at < k; at += LANES) {
        vf v[ROWS];
        for (int i = 0; i < rows; i++) v[i] = load_some(x[i] + at * x_size, x_type, k - at);
        for (int j = 0; j < ranks; j++) {
            vf w = load_some(a + (j * k + at) * a_size, type, k - at);
            for (int i = 0; i < rows; i++) sums[i][j] = fma_(w, v[i], sums[i][j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < ranks; j++)
            job->h[row[i] * job->lora->most_rank + rank + j] = sum_of(sums[i][j]) * adapter->scales[rank + j];
}

/* ── expand ───────────────────────────────────────────────────────────────────────────────────── */

INLINE void expand(const Job *job, int type, int y_type, const int32_t *row, int rows, const Up *up, int64_t start,
                   int64_t columns, int64_t first, int64_t last) {
    const Lora *lora = job->lora;
    int64_t b_size = size_of(type), y_size = size_of(y_type);
    const float *h[ROWS];
    for (int i = 0; i < rows; i++) h[i] = job->h + row[i] * lora->most_rank + up->at;
    for (int64_t at = first; at < last; at += 2 * LANES) {
        int64_t left = last - at, second = left > LANES ? left - LANES : 0;
        vf sums[ROWS][2] = {};
        for (int64_t r = 0; r < up->rank; r++) {
            const char *b = (const char *)up->b + (r * columns + at - start) * b_size;
            vf b0 = load_some(b, type, left), b1 = second ? load_some(b + LANES * b_size, type, second) : (vf){};
            for (int i = 0; i < rows; i++) {
                vf factor = splat(h[i][r]);
                sums[i][0] = fma_(b0, factor, sums[i][0]);
                sums[i][1] = fma_(b1, factor, sums[i][1]);
            }
        }
        for (int i = 0; i < rows; i++) {
            char *y = job->y + (row[i] * lora->n + at) * y_size;
            store_some(y, y_type, left, load_some(y, y_type, left) + sums[i][0]);
            if (second) {
                y += LANES * y_size;
                store_some(y, y_type, second, load_some(y, y_type, second) + sums[i][1]);
            }
        }
    }
}

INLINE void expand_all(const Job *job, int type, int y_type, const int32_t *row, int rows, const Adapter *adapter,
                       int64_t piece) {
    const Lora *lora = job->lora;
    for (int64_t s = 0; s < lora->segments; s++) {
        int64_t start = lora->starts[s], end = lora->starts[s + 1];
        int64_t first = start + piece * COLUMNS, last = first + COLUMNS < end ? first + COLUMNS : end;
        if (adapter->ups[s].rank && first < last)
            expand(job, type, y_type, row, rows, adapter->ups + s, start, end - start, first, last);
    }
}

/* ── both ─────────────────────────────────────────────────────────────────────────────────────── */

#define NUMBER_OF_ROWS(CALL, ...)                \
    switch (rows) {                              \
    case 1: CALL(__VA_ARGS__, 1); break;         \
    case 2: CALL(__VA_ARGS__, 2); break;         \
    case 3: CALL(__VA_ARGS__, 3); break;         \
    default: CALL(__VA_ARGS__, 4); break;        \
    }
#define SHRINK(type, x_type, n) shrink(job, type, x_type, row, n < ROWS ? n : ROWS, adapter, piece * RANKS)
#define EXPAND(type, y_type, n) expand_all(job, type, y_type, row, n < ROWS ? n : ROWS, adapter, piece)
#define TYPES(CALL, type, other)                                                         \
    if (type == F32 && other == F32) { NUMBER_OF_ROWS(CALL, F32, F32) }                  \
    else if (type == BF16 && other == BF16) { NUMBER_OF_ROWS(CALL, BF16, BF16) }         \
    else if (type == F16 && other == F16) { NUMBER_OF_ROWS(CALL, F16, F16) }             \
    else { CALL(type, other, rows); }

static void shrink_run(const Job *job, const int32_t *row, int rows, const Adapter *adapter, int64_t piece) {
    if (piece * RANKS < adapter->rank) { TYPES(SHRINK, (int)job->lora->type, job->x_type) }
}

static void expand_run(const Job *job, const int32_t *row, int rows, const Adapter *adapter, int64_t piece) {
    if (adapter->rank) { TYPES(EXPAND, (int)job->lora->type, job->y_type) }
}

typedef void (*Run)(const Job *, const int32_t *, int, const Adapter *, int64_t);

/* Of ROWS rows in the order of their adapters, each run of those with one. */
INLINE void runs(const Job *job, int64_t unit, Run run) {
    const int32_t *row = job->order + unit / job->pieces * ROWS, *all = job->order + job->m;
    const int32_t *end = row + ROWS < all ? row + ROWS : all;
    while (row < end) {
        int32_t adapter = job->adapters[*row];
        int rows = 1;
        while (row + rows < end && job->adapters[row[rows]] == adapter) rows++;
        if (adapter >= 0) run(job, row, rows, job->lora->adapters + adapter, unit % job->pieces);
        row += rows;
    }
}

static void shrink_units(const void *argument, long index) {
    const Job *job = argument;
    int64_t end = (index + 1) * job->at_once;
    for (int64_t unit = index * job->at_once; unit < end && unit < job->units; unit++) runs(job, unit, shrink_run);
}

static void expand_units(const void *argument, long index) {
    const Job *job = argument;
    int64_t end = (index + 1) * job->at_once;
    for (int64_t unit = index * job->at_once; unit < end && unit < job->units; unit++) runs(job, unit, expand_run);
}

/* `each`: products of a unit. A chunk is worth a few microseconds. */
static void phase(Job *job, tern_chunk run, int64_t pieces, int64_t each) {
    job->pieces = pieces;
    job->units = (job->m + ROWS - 1) / ROWS * pieces;
    job->at_once = each < 4 * LEAST_WORK ? 4 * LEAST_WORK / each + 1 : 1;
    tern_parallel_for(run, job, (long)((job->units + job->at_once - 1) / job->at_once));
}

void tern_lora(const Lora *lora, const int32_t *adapters, const int32_t *order, const void *x, int64_t x_type, int64_t m,
               int64_t x_stride, void *y, int64_t y_type, float *h) {
    int64_t row = 0, widest = 0;
    while (row < m && (adapters[row] < 0 || !lora->adapters[adapters[row]].rank)) row++;
    if (row == m) return;
    for (int64_t s = 0; s < lora->segments; s++) {
        int64_t columns = lora->starts[s + 1] - lora->starts[s];
        if (columns > widest) widest = columns;
    }
    Job job = {lora, adapters, order, x, y, h, m, x_stride, (int)x_type, (int)y_type, 0, 0, 0};
    phase(&job, shrink_units, (lora->most_rank + RANKS - 1) / RANKS, ROWS * RANKS * lora->k);
    phase(&job, expand_units, (widest + COLUMNS - 1) / COLUMNS,
          ROWS * COLUMNS * (lora->most_rank / lora->segments + 1) * lora->segments);
}
