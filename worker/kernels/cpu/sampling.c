/* From logits to tokens, row by row, without sorting. Rows do not depend on one another.
 *
 *     mask     tokens whose bit is not set become impossible
 *     choose   the likeliest token, and whether all logits are finite
 *     draw     temperature → top-k → top-p of what top-k left → min-p → inverse of the cumulative distribution
 *
 * A filter is a least weight, weight = e^(logit - largest logit): tokens that tie with the last one kept are
 * kept. It is found by descending through the bits of the weights, 11 at a time, with the count and the mass of
 * each of 2048 ranges: three passes over those that are still in question, whatever k and p are.
 */
#include "elementwise.h"
#include <stdlib.h>

typedef struct {
    float *logits;
    const int64_t *rows;
    const uint8_t *bits;
    int64_t vocab_size, stride, row_bytes;
} mask_job;

static void mask_row(const void *argument, long index) {
    const mask_job *job = argument;
    float *x = job->logits + job->rows[index] * job->stride;
    const uint8_t *bits = job->bits + index * job->row_bytes;
    int64_t i = 0;
#if LANES == 16
    for (; i + 16 <= job->vocab_size; i += 16) {
        uint16_t allowed;
        memcpy(&allowed, bits + i / 8, sizeof allowed);
        _mm512_mask_storeu_ps(x + i, (__mmask16)~allowed, _mm512_set1_ps(-INFINITY));
    }
#endif
    for (; i < job->vocab_size; i++)
        if (!(bits[i / 8] >> i % 8 & 1)) x[i] = -INFINITY;
}

/* Of `count` rows of float32 logits, `stride` apart: bits [count][row_bytes], the lowest of a byte first. */
void tern_mask(float *logits, int64_t vocab_size, int64_t stride, int64_t count, const int64_t *rows, const uint8_t *bits,
               int64_t row_bytes) {
    mask_job job = {logits, rows, bits, vocab_size, stride, row_bytes};
    tern_parallel_for(mask_row, &job, count);
}

typedef struct {
    const float *logits;
    int64_t num_rows, vocab_size, stride;
    int64_t *tokens;
    uint8_t *finite;
} choose_job;

static void choose_row(const void *argument, long row) {
    const choose_job *job = argument;
    const float *x = job->logits + row * job->stride;
    int64_t whole = job->vocab_size / LANES * LANES;
    vf best = splat(-INFINITY), spoiled = (vf){};
    vi place = (vi){}, at;
    for (int i = 0; i < LANES; i++) at[i] = i;
    for (int64_t i = 0; i < whole; i += LANES, at += LANES) {
        vf v = load(x + i);
        vi better = v > best;
        best = select_(better, v, best);
        place = (at & better) | (place & ~better);
        spoiled = fma_(v, (vf){}, spoiled); /* 0, or NaN from the first infinity or NaN on */
    }
    float largest = -INFINITY, sum = sum_of(spoiled);
    int64_t token = 0;
    for (int i = 0; i < LANES; i++)
        if (best[i] > largest || (best[i] == largest && place[i] < token)) largest = best[i], token = place[i];
    for (int64_t i = whole; i < job->vocab_size; i++) {
        if (x[i] > largest) largest = x[i], token = i;
        sum += x[i] * 0;
    }
    job->tokens[row] = token;
    if (job->finite) job->finite[row] = sum == sum;
}

/* Of float32 rows `stride` apart: the first of the largest, and whether there is neither NaN nor infinity. */
void tern_choose(const float *logits, int64_t num_rows, int64_t vocab_size, int64_t stride, int64_t *tokens, uint8_t *finite) {
    choose_job job = {logits, num_rows, vocab_size, stride, tokens, finite};
    tern_parallel_for(choose_row, &job, num_rows);
}

typedef struct {
    const float *logits;
    const int64_t *rows; /* of the logits that are drawn from */
    int64_t vocab_size, stride;
    const float *temperature, *top_p, *min_p;
    const int64_t *top_k;
    const double *uniform;
    float *weights; /* [count, room] */
    int64_t room;
    int64_t *tokens;
} draw_job;

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }

/* The least weight that belongs to the heaviest, until `count` of them or `mass` of weight is reached. `kept` is
 * the mass of exactly so many. */
static float least_weight(const float *weights, int64_t n, double count, double mass, double *kept) {
    static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t prefix = 0;
    double above = 0, mass_above = 0;
    for (int level = 0; level < 3; level++) {
        int64_t counts[2048] = {0};
        double masses[2048] = {0};
        int shift = shifts[level];
        uint32_t range = (1u << widths[level]) - 1;
        for (int64_t i = 0; i < n; i++) {
            uint32_t u = bits_of(weights[i]);
            if (level && u >> (shift + widths[level]) != prefix) continue;
            counts[(u >> shift) & range]++;
            masses[(u >> shift) & range] += (double)weights[i];
        }
        int64_t found = 0; /* the lowest that is not empty, if neither bound is reached */
        for (int64_t r = range; r >= 0; r--) {
            if (!counts[r]) continue;
            found = r;
            if (above + (double)counts[r] >= count || mass_above + masses[r] >= mass) break;
            above += (double)counts[r], mass_above += masses[r];
        }
        prefix = prefix << widths[level] | (uint32_t)found;
    }
    float weight;
    memcpy(&weight, &prefix, 4);
    *kept = mass_above + (count - above) * (double)weight;
    return weight;
}

static void draw_row(const void *argument, long index) {
    const draw_job *job = argument;
    int64_t row = job->rows[index], n = job->vocab_size;
    const float *x = job->logits + row * job->stride;
    float *weights = job->weights + index * job->room;
    float inverse = 1 / job->temperature[index], largest = -INFINITY;
    for (int64_t i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    double total = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = splat(-INFINITY);
        if (i + LANES <= n) v = load(x + i);
        else memcpy(&v, x + i, sizeof(float) * (size_t)(n - i));
        v = (v - splat(largest)) * splat(inverse);
        store(weights + i, select_(v >= splat(-87.0f), exp_(v), (vf){}));
    }
    for (int64_t i = 0; i < n; i++) total += (double)weights[i];
    float floor = 0;
    double kept = total;
    int64_t k = job->top_k[index];
    if (k > 0 && k < n) floor = least_weight(weights, n, (double)k, INFINITY, &kept);
    if (job->top_p[index] < 1) {
        double ignored;
        float by_mass = least_weight(weights, n, INFINITY, (double)job->top_p[index] * kept, &ignored);
        floor = by_mass > floor ? by_mass : floor;
    }
    floor = job->min_p[index] > floor ? job->min_p[index] : floor;
    if (floor > 0) {
        total = 0;
        for (int64_t i = 0; i < n; i++) {
            weights[i] = weights[i] < floor ? 0 : weights[i];
            total += (double)weights[i];
        }
    }
    double wanted = job->uniform[index] * total, sum = 0;
    int64_t token = 0;
    for (int64_t i = 0; i < n && sum <= wanted; i++)
        if (weights[i] > 0) sum += (double)weights[i], token = i;
    job->tokens[index] = token;
}

/* Draws from `count` rows of the logits, each at a number in [0, 1). Returns 0, or -1 without memory. */
int tern_draw(const float *logits, int64_t vocab_size, int64_t stride, int64_t count, const int64_t *rows,
              const float *temperature, const int64_t *top_k, const float *top_p, const float *min_p,
              const double *uniform, int64_t *tokens) {
    int64_t room = vocab_size + LANES;
    float *weights = malloc(sizeof(float) * (size_t)(count * room));
    if (!weights) return -1;
    draw_job job = {logits, rows, vocab_size, stride, temperature, top_p, min_p, top_k, uniform, weights, room, tokens};
    tern_parallel_for(draw_row, &job, count);
    free(weights);
    return 0;
}
