/* Norms and activations of rows, in float32 whatever the rows' type. Rows do not depend on one another. */
#include "rows.h"
#include "elementwise.h"

enum { RMS_NORM = 0, LAYER_NORM = 1 };
enum { SILU = 0, GELU_TANH = 1 };
enum { MAX_SIZE = 65536 };

typedef struct {
    const char *x, *weight, *bias, *add; /* bias and add, or NULL */
    char *out;
    int64_t kind, dtype, weight_dtype, num_rows, size, rows_at_once;
    double eps;
} norm_job;

static void norm_row(const norm_job *job, int64_t row, const float *weight, const float *bias, float *x, float *add) {
    int64_t size = job->size, at = row * size * size_of((int)job->dtype);
    widen(job->x + at, (int)job->dtype, size, x);
    if (job->kind == LAYER_NORM) {
        vf total = (vf){};
        for (int64_t i = 0; i < size; i += LANES) total = total + load(x + i);
        float mean = sum_of(total) / (float)size;
        for (int64_t i = 0; i < size; i++) x[i] -= mean;
    }
    vf even = (vf){}, odd = (vf){};
    for (int64_t i = 0; i < size; i += CHUNK) {
        even = fma_(load(x + i), load(x + i), even);
        odd = fma_(load(x + i + LANES), load(x + i + LANES), odd);
    }
    float factor = (float)(1.0 / sqrt((double)sum_of(even + odd) / (double)size + job->eps));
    if (job->bias) {
        for (int64_t i = 0; i < size; i++) x[i] = x[i] * factor * weight[i] + bias[i];
    } else {
        for (int64_t i = 0; i < size; i++) x[i] = x[i] * factor * weight[i];
    }
    if (job->add) {
        widen(job->add + at, (int)job->dtype, size, add);
        for (int64_t i = 0; i < size; i++) x[i] += add[i];
    }
    narrow(x, (int)job->dtype, size, job->out + at);
}

static void norm_rows(const void *argument, long index) {
    const norm_job *job = argument;
    int64_t end = (index + 1) * job->rows_at_once, room = job->size + CHUNK;
    float weight[room], bias[room], x[room], add[room];
    widen(job->weight, (int)job->weight_dtype, job->size, weight);
    if (job->bias) widen(job->bias, (int)job->weight_dtype, job->size, bias);
    for (int64_t row = index * job->rows_at_once; row < end && row < job->num_rows; row++)
        norm_row(job, row, weight, bias, x, add);
}

/* out = add + norm(x) · weight + bias, all [rows, size]. Returns 0, or -1 for rows longer than MAX_SIZE. */
int tern_norm(int64_t kind, const void *x, const void *weight, const void *bias, const void *add, void *out,
              int64_t dtype, int64_t weight_dtype, int64_t num_rows, int64_t size, double eps) {
    if (size > MAX_SIZE) return -1;
    int64_t each = size < LEAST_WORK ? LEAST_WORK / size : 1;
    norm_job job = {x, weight, bias, add, out, kind, dtype, weight_dtype, num_rows, size, each, eps};
    tern_parallel_for(norm_rows, &job, (long)((num_rows + each - 1) / each));
    return 0;
}

typedef struct {
    const char *gate, *up; /* up, or NULL */
    char *out;
    int64_t kind, dtype, num_rows, size, stride, rows_at_once;
} activation_job;

INLINE vf activate(vf x, int dtype, int64_t kind) {
    if (kind == SILU && dtype == F32) return x / (splat(1.0f) + exp_(-x));
    /* -x log2 e is rounded: of what is less than e^-20 within 2^-18, which 16 bits do not show */
    if (kind == SILU) return x / (splat(1.0f) + exp2_(x * splat(-1.44269504088896341f)));
    vf inner = x * splat(0.79788456080286536f) * fma_(x * x, splat(0.044715f), splat(1.0f));
    return x * splat(0.5f) * (splat(1.0f) + tanh_(inner));
}

INLINE void activate_rows_of(const activation_job *job, int64_t first, int64_t end, int dtype, int64_t kind) {
    int64_t bytes = size_of(dtype);
    for (int64_t row = first; row < end; row++) {
        int64_t from = row * job->stride * bytes, to = row * job->size * bytes;
        for (int64_t i = 0; i < job->size; i += CHUNK) {
            int count = job->size - i < CHUNK ? (int)(job->size - i) : CHUNK;
            pair x = load_pair(job->gate + from + i * bytes, dtype, count);
            x.a = activate(x.a, dtype, kind), x.b = activate(x.b, dtype, kind);
            if (job->up) {
                pair u = load_pair(job->up + from + i * bytes, dtype, count);
                x.a = x.a * u.a, x.b = x.b * u.b;
            }
            store_pair(job->out + to + i * bytes, dtype, count, x);
        }
    }
}

static void activate_rows(const void *argument, long index) {
    const activation_job *job = argument;
    int64_t first = index * job->rows_at_once, end = first + job->rows_at_once;
    if (end > job->num_rows) end = job->num_rows;
#define KINDS(dtype) if (job->kind == SILU) activate_rows_of(job, first, end, dtype, SILU); \
    else activate_rows_of(job, first, end, dtype, GELU_TANH)
    if (job->dtype == F32) { KINDS(F32); } else if (job->dtype == BF16) { KINDS(BF16); } else { KINDS(F16); }
}

/* out [rows, size] = act(gate) · up, both [rows, size] of rows `stride` apart; without up: act(gate). */
void tern_activate(int64_t kind, const void *gate, const void *up, void *out, int64_t dtype, int64_t num_rows,
                   int64_t size, int64_t stride) {
    int64_t each = size < LEAST_WORK / 4 ? LEAST_WORK / 4 / size : 1; /* an exponential is worth four sums */
    activation_job job = {gate, up, out, kind, dtype, num_rows, size, stride, each};
    tern_parallel_for(activate_rows, &job, (long)((num_rows + each - 1) / each));
}
