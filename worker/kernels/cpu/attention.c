/* Paged attention: every query of a step over its own sequence's keys and values, read in place.
 *
 * One code path computes decodes and prefills. A query's result depends on its sequence alone, bit for bit:
 * not on chunks, company, threads, or block size. So the order of every sum is fixed by absolute positions:
 *
 *     positions  0 ……………………………… 255 │ 256 ……………………… 511 │ 512 …     spans, merged in order
 *                0…31 │ 32…63 │ …                                     tiles, online softmax (Milakov and
 *                                                                     Gimelshein, 2018) within a span
 *
 * A unit of work is up to UNIT_ROWS rows (token, head of the group) of one sequence and one KV head, so each key
 * is read once for all query heads that share it, and for many tokens of a prompt (attention_blocks.h). When there
 * are too few units for the threads, their spans are computed apart and merged afterwards, to the same bits. All sums
 * are in float32, or exact in integers. Nothing outside of a sequence's own window is ever read.
 */
#include "attention_blocks.h"
#include "attention_int8.h"
#include "pool.h"
#include <stdlib.h>

typedef struct { int64_t sequence, first_row, num_rows, span; } unit;

typedef struct {
    const attention_layer *layer;
    const attention_step *step;
    const char *query;
    char *out;
    int64_t query_stride;       /* heads in a token's row of `query` */
    unit *units;
    int64_t num_units;
    float *parts;               /* [unit][kv head] states, when spans are apart */
    int64_t part_floats;
    int way;                    /* PLAIN, PAIRS or CODES, which also says how queries lie */
    int64_t width;              /* of a row of mixed values: head_dim, padded */
    int64_t heads_at_once;      /* KV heads of a unit that are one job */
    long num_jobs, threads;
    int64_t most_rows;          /* of a sequence */
} work;

/* What a unit's rows see: positions lowest … end - 1, from `span` on. */
static reach reach_of(const work *w, const unit *u, int64_t kv_head) {
    const attention_step *step = w->step;
    const attention_layer *layer = w->layer;
    reach it;
    it.kv_head = kv_head;
    it.table = step->block_tables + u->sequence * step->table_stride;
    it.at = (rows_at){u->first_row, layer->num_heads / layer->num_kv_heads,
                      step->positions[step->query_start[u->sequence]], step->window};
    it.end = position_of(&it.at, u->num_rows - 1) + 1;
    it.lowest = step->window ? most(position_of(&it.at, 0) + 1 - step->window, 0) : 0;
    it.span = u->span >= 0 ? u->span : it.lowest / SPAN;
    return it;
}

static void attend_tile(const work *w, const unit *u, const reach *it, const float *q, int64_t begin, const place *here,
                        const place *ahead, state s) {
    const attention_layer *layer = w->layer;
#if HAS_CODES
    if (w->way == CODES) {
        tile_codes(&it->at, layer, u->num_rows, q, begin, here, ahead, s);
        return;
    }
#endif
    place plain;
    char memory[PLAIN_BYTES] __attribute__((aligned(64)));
    if (layer->key_scales) {
        unpack_tile(layer, here, ahead, memory, &plain);
        here = &plain, ahead = NULL;
    }
    switch (layer->key_scales ? plain_type(layer) : layer->dtype) {
    case F32: tile_f32(&it->at, layer, u->num_rows, q, begin, here, ahead, s); break;
    case BF16: (w->way == PAIRS ? tile_pairs : tile_bf16)(&it->at, layer, u->num_rows, q, begin, here, ahead, s); break;
    default: tile_f16(&it->at, layer, u->num_rows, q, begin, here, ahead, s);
    }
}

/* One span of `count` heads, tile by tile. `after`: what is probably computed behind it, or NULL. */
static void attend_span(const work *w, const unit *u, const reach *heads, int64_t count, const float *q, state *s, const reach *after) {
    const attention_layer *layer = w->layer;
    int few = u->num_rows <= FEW_ROWS, now = 0;
    place places[2];
    for (int64_t i = 0; i < count; i++) clear(s[i], 0, u->num_rows, w->width);
    int64_t begin = first_tile(heads), end = span_end(heads);
    locate_tile(layer, heads, begin, &places[0]);
    for (; begin < end; begin += TILE)
        for (int64_t i = 0; i < count; i++, now = !now) {
            const place *ahead = few ? &places[!now] : NULL;
            if (i + 1 < count) locate_tile(layer, heads + i + 1, begin, &places[!now]);
            else if (begin + TILE < end) locate_tile(layer, heads, begin + TILE, &places[!now]);
            else if (few && after) locate_tile(layer, after, first_tile(after), &places[!now]);
            else ahead = NULL;
            attend_tile(w, u, heads + i, q + i * HEAD_FLOATS, begin, &places[now], ahead, s[i]);
        }
}

INLINE int64_t place_of(const work *w, const unit *u, const reach *it, int64_t row, int64_t stride) {
    int64_t number = it->at.first_row + row, group = it->at.group;
    int64_t token = w->step->query_start[u->sequence] + number / group;
    return (token * stride + it->kv_head * group + number % group) * w->layer->head_dim * size_of((int)w->layer->dtype);
}

/* Of few rows, or PLAIN. */
static void load_queries(const work *w, const unit *u, const reach *it, float *q) {
    int64_t dim = w->layer->head_dim;
    int dtype = (int)w->layer->dtype;
    for (int64_t row = 0; row < u->num_rows; row++) {
        const char *from = w->query + place_of(w, u, it, row, w->query_stride);
#if HAS_CODES
        coded_queries coded = coded_in(q, FEW_ROWS);
        if (w->way == CODES) code_query(coded, row, from, dtype, dim, coded.digits + row * 2 * MOST_CODED_DIM);
#endif
#if HAS_PAIRS
        for (int64_t i = 0; i < dim / 2 && w->way == PAIRS; i++) memcpy((uint32_t *)q + i * FEW + row, from + 4 * i, 4);
#endif
        if (w->way != PLAIN) continue;
        for (int64_t d = 0; d < dim; d += CHUNK) {
            pair x = load_pair(from + d * size_of(dtype), dtype, (int)least(dim - d, CHUNK));
            store(q + row * w->width + d, x.a), store(q + row * w->width + d + LANES, x.b);
        }
    }
}

static void finish(const work *w, const unit *u, const reach *it, state s) {
    int64_t dim = w->layer->head_dim;
    int dtype = (int)w->layer->dtype;
    for (int64_t row = 0; row < u->num_rows; row++) {
        char *to = w->out + place_of(w, u, it, row, w->layer->num_heads);
        float total = s.sum[row], factor = 1;
        if (w->layer->sinks) {
            float sink = (float)LOG2_E * w->layer->sinks[it->kv_head * it->at.group + (it->at.first_row + row) % it->at.group];
            float level = s.level[row] > sink ? s.level[row] : ceilf(sink);
            factor = exp2_(splat(s.level[row] - level))[0];
            total = total * factor + exp2_(splat(sink - level))[0];
        }
        vf share = splat(factor / total);
#if HAS_CODES
        for (int64_t d = 0; d < dim && w->way == CODES; d += WIDE) {
            vf dims[4];
            order_dims(s.mixed + row * w->width + d, dims);
            for (int i = 0; i < 4 && d + i * LANES < dim; i++)
                store_some(to + (d + i * LANES) * size_of(dtype), dtype, least(dim - d - i * LANES, LANES), dims[i] * share);
        }
        if (w->way == CODES) continue;
#endif
        for (int64_t d = 0; d < dim; d += CHUNK) {
            const float *from = s.mixed + row * w->width + d;
            store_pair(to + d * size_of(dtype), dtype, (int)least(dim - d, CHUNK),
                       (pair){load(from) * share, load(from + LANES) * share});
        }
    }
}

/* `count` heads of a unit, side by side; behind them probably comes `after`, unless that is NULL. */
static void attend_heads(const work *w, const unit *u, int64_t head, int64_t count, const reach *after) {
    float q[MAX_FLOATS] __attribute__((aligned(64)));
    float first[MAX_FLOATS + 2 * MAX_ROWS] __attribute__((aligned(64)));
    float next[MAX_FLOATS + 2 * MAX_ROWS] __attribute__((aligned(64)));
    reach heads[MOST_HEADS], following;
    state total[MOST_HEADS], part[MOST_HEADS];
    int64_t num_rows = u->num_rows, floats = state_floats(num_rows, w->width);
    for (int64_t i = 0; i < count; i++) {
        heads[i] = reach_of(w, u, head + i);
        load_queries(w, u, heads + i, q + i * HEAD_FLOATS);
        float *apart = w->parts + ((u - w->units) * w->layer->num_kv_heads + head + i) * w->part_floats;
        total[i] = state_in(u->span >= 0 ? apart : first + i * floats, num_rows, w->width);
        part[i] = state_in(next + i * floats, num_rows, w->width);
    }
    int64_t begin = heads->span, end = u->span >= 0 ? begin + 1 : (heads->end + SPAN - 1) / SPAN;
    for (int64_t span = begin; span < end; span++) {
        for (int64_t i = 0; i < count; i++) heads[i].span = span;
        following = heads[0], following.span++;
        attend_span(w, u, heads, count, q, span == begin ? total : part, span + 1 < end ? &following : after);
        for (int64_t i = 0; i < count && span > begin; i++) merge(total[i], part[i], num_rows, w->width);
    }
    for (int64_t i = 0; i < count && u->span < 0; i++) finish(w, u, heads + i, total[i]);
}

#if HAS_PAIRS || HAS_CODES
static void pack_queries(const work *w, const unit *u, const reach *it, packed_queries *q) {
    int64_t dim = w->layer->head_dim;
    for (int64_t row = 0; row < u->num_rows; row += LANES) {
        const char *from[LANES] = {NULL};
        for (int64_t i = 0; i < least(u->num_rows - row, LANES); i++) from[i] = w->query + place_of(w, u, it, row + i, w->query_stride);
#if HAS_PAIRS
        if (w->way == PAIRS) turn_queries(from, dim, q->pairs + row / MANY * MANY * (dim / 2) + row % MANY);
#endif
#if HAS_CODES
        int8_t digits[LANES][2 * MOST_CODED_DIM] __attribute__((aligned(64)));
        coded_queries coded = coded_in(q->codes, UNIT_ROWS);
        for (int64_t i = 0; i < LANES && w->way == CODES && from[i]; i++)
            code_query(coded, row + i, from[i], (int)w->layer->dtype, dim, digits[i]);
        if (w->way == CODES) turn_digits(digits[0], w->width, (uint32_t *)coded.digits + row * (w->width / 2));
#endif
    }
}

/* A unit's numbers at `from`, rows of `stride` heads, are needed soon: a wish is as long as a key. */
static void wish_for_rows(const work *w, const unit *u, const reach *it, const char *from, int64_t stride, wishes *to) {
    int64_t bytes = w->layer->head_dim * size_of((int)w->layer->dtype), each = w->way == CODES ? w->layer->head_dim : bytes;
    for (int64_t row = 0; row < u->num_rows; row++)
        for (int64_t at = 0; at < bytes; at += each) wish(to, from + place_of(w, u, it, row, stride) + at);
}

/* `next`: what is probably computed behind it, or NULL. */
static __attribute__((noinline)) void attend_many(const work *w, const unit *u, int64_t head, const unit *next, int64_t next_head) {
    packed_queries q __attribute__((aligned(64)));
    float memory[UNIT_FLOATS + 2 * UNIT_ROWS] __attribute__((aligned(64)));
    reach it = reach_of(w, u, head);
    float *apart = w->parts + ((u - w->units) * w->layer->num_kv_heads + head) * w->part_floats;
    state total = state_in(u->span >= 0 ? apart : memory, u->num_rows, w->width);
    pack_queries(w, u, &it, &q);
    wishes after = {0, 0};
    if (u->span < 0) wish_for_rows(w, u, &it, w->out, w->layer->num_heads, &after);
    if (next) {
        reach then = reach_of(w, next, next_head);
        wish_for_rows(w, next, &then, w->query, w->query_stride, &after);
        wish_for_span(w->layer, &then, &after);
    }
    attend_blocks(w->layer, w->way, it, u->num_rows, w->width, u->span >= 0 ? u->span + 1 : (it.end + SPAN - 1) / SPAN, &q, &after,
                  total);
    if (u->span < 0) finish(w, u, &it, total);
}
#endif

/* Of one job its unit and its first head. A prompt's last rows see most: they go first. */
INLINE const unit *unit_of(const work *w, long job, int64_t *head) {
    int64_t jobs = w->layer->num_kv_heads / w->heads_at_once;
    *head = job % jobs * w->heads_at_once;
    return w->units + w->num_units - 1 - job / jobs;
}

static void attend(const void *argument, long job) {
    const work *w = argument;
    int64_t first, next_first = 0;
    const unit *u = unit_of(w, job, &first), *next = NULL;
    /* threads take jobs in turns, or nearly so */
    if (job + w->threads < w->num_jobs) next = unit_of(w, job + w->threads, &next_first);
#if HAS_PAIRS || HAS_CODES
    if (w->way != PLAIN && u->num_rows > FEW_ROWS) {
        attend_many(w, u, first, next, next_first);
        return;
    }
#endif
    /* Few rows wait for memory, and it is faster where it is read along a block: heads are computed side by side. */
    int64_t count = u->num_rows <= FEW_ROWS && w->width <= HEAD_FLOATS / FEW_ROWS ? w->heads_at_once : 1;
    for (int64_t head = first; head < first + w->heads_at_once; head += count) {
        reach after;
        int more = head + count < first + w->heads_at_once;
        if (more) after = reach_of(w, u, head + count);
        else if (next) after = reach_of(w, next, next_first);
        attend_heads(w, u, head, count, more || next ? &after : NULL);
    }
}

/* The units of one sequence's rows stand together, span after span. */
static void merge_spans(const work *w) {
    int64_t kv_heads = w->layer->num_kv_heads;
    for (int64_t i = 0, next; i < w->num_units; i = next) {
        const unit *u = w->units + i;
        for (next = i + 1; next < w->num_units && w->units[next].sequence == u->sequence &&
                           w->units[next].first_row == u->first_row; next++) {}
        for (int64_t head = 0; head < kv_heads; head++) {
            reach it = reach_of(w, u, head);
            state total = state_in(w->parts + (i * kv_heads + head) * w->part_floats, u->num_rows, w->width);
            for (int64_t other = i + 1; other < next; other++)
                merge(total, state_in(w->parts + (other * kv_heads + head) * w->part_floats, u->num_rows, w->width), u->num_rows, w->width);
            finish(w, u, &it, total);
        }
    }
}

/* Fills w->units, or only counts them when it is NULL. */
static int64_t list_units(work *w, int64_t rows_at_once, int apart) {
    const attention_step *step = w->step;
    int64_t group = w->layer->num_heads / w->layer->num_kv_heads, count = 0;
    for (int64_t sequence = 0; sequence < step->num_sequences; sequence++) {
        int64_t num_rows = (step->query_start[sequence + 1] - step->query_start[sequence]) * group;
        w->most_rows = most(w->most_rows, num_rows);
        for (int64_t row = 0; row < num_rows; row += rows_at_once) {
            unit u = {sequence, row, least(rows_at_once, num_rows - row), -1};
            int64_t span = 0, end = 1;
            if (apart) {
                reach it = reach_of(w, &u, 0);
                span = it.lowest / SPAN, end = (it.end + SPAN - 1) / SPAN;
            }
            for (; span < end; span++, count++)
                if (w->units) {
                    if (apart) u.span = span;
                    w->units[count] = u;
                }
        }
    }
    return count;
}

/* query [token, query_stride heads, dim] → out [token, head, dim]. Returns 0, or -1 without memory. */
int tern_attend(const attention_layer *layer, const attention_step *step, const void *query, int64_t query_stride, void *out) {
    int way = can_code(layer) ? CODES : can_pair(layer) ? PAIRS : PLAIN;
    int64_t width = way == CODES ? coded_width(layer->head_dim) : padded(layer->head_dim);
    work w = {layer, step, query, out, query_stride, NULL, 0, NULL, 0, way, width, 1, 0, 0, 0};
    int64_t rows = way == PLAIN ? least(MAX_ROWS, MAX_FLOATS / width) : least(UNIT_ROWS, UNIT_FLOATS / width / MANY * MANY);
    int64_t threads = tern_get_threads(), kv_heads = layer->num_kv_heads;
    int apart = 0;
    w.num_units = list_units(&w, rows, 0);
    while (rows > LEAST_UNIT_ROWS && w.num_units * kv_heads < 8 * threads) {
        rows = rows / 2 / MANY * MANY;
        w.num_units = list_units(&w, rows, 0);
    }
    if (threads > 1 && w.num_units * kv_heads < 4 * threads) {
        apart = 1;
        w.num_units = list_units(&w, rows, 1);
        w.part_floats = state_floats(least(rows, w.most_rows), width);
    }
    size_t units_bytes = ((size_t)w.num_units * sizeof(unit) + 63) / 64 * 64;
    size_t parts_bytes = sizeof(float) * (size_t)(w.num_units * kv_heads * w.part_floats);
    char *memory = aligned_alloc(64, units_bytes + (parts_bytes + 63) / 64 * 64);
    if (!memory) return -1;
    w.units = (unit *)memory;
    w.parts = (float *)(memory + units_bytes);
    list_units(&w, rows, apart);
    while (w.most_rows <= FEW_ROWS && w.heads_at_once < MOST_HEADS && kv_heads % (2 * w.heads_at_once) == 0 &&
           w.num_units * kv_heads >= 4 * threads * w.heads_at_once)
        w.heads_at_once *= 2;
    w.num_jobs = (long)(w.num_units * kv_heads / w.heads_at_once), w.threads = (long)threads;
    tern_parallel_for(attend, &w, w.num_jobs);
    if (apart) merge_spans(&w);
    free(memory);
    return 0;
}
