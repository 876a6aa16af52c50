/* Paged attention: every query of a step over its own sequence's keys and values, read in place.
 *
 * One code path computes decodes and prefills. A query's result depends on its sequence alone, bit for bit:
 * not on chunks, company, threads, or block size. So the order of every sum is fixed by absolute positions:
 *
 *     positions  0 ……………………………… 255 │ 256 ……………………… 511 │ 512 …     spans, merged in order
 *                0…31 │ 32…63 │ …                                     tiles, online softmax (Milakov and
 *                                                                     Gimelshein, 2018) within a span
 *
 * A unit of work is up to MAX_ROWS rows (token, head of the group) of one sequence and one KV head, so each key
 * is read once for all query heads that share it. When there are too few units for the threads, their spans
 * are computed apart and merged afterwards, to the same bits. All sums are in float32, or exact in integers.
 * Nothing outside of a sequence's own window is ever read.
 */
#include "attention_codes.h"
#include "attention_int8.h"
#include "attention_pairs.h"
#include "attention_tile.h"
#include "pool.h"
#include <stdlib.h>

/* How a tile is computed: in float32; bf16 in pairs (attention_pairs.h); int8 as it lies (attention_codes.h). */
enum { PLAIN, PAIRS, CODES };

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

/* The state of up to `num_rows` rows. */
INLINE int64_t state_floats(int64_t num_rows, int64_t width) { return num_rows * width + (2 * num_rows + LANES - 1) / LANES * LANES; }

INLINE state state_in(float *memory, int64_t num_rows, int64_t width) {
    float *max = memory + num_rows * width;
    return (state){max, max + num_rows, memory};
}

static void clear(state s, int64_t num_rows, int64_t width) {
    for (int64_t r = 0; r < num_rows; r++) s.max[r] = NOTHING, s.sum[r] = 0;
    memset(s.mixed, 0, sizeof(float) * (size_t)(num_rows * width));
}

/* into = into ⊕ part */
static void merge(state into, state part, int64_t num_rows, int64_t width) {
    for (int64_t r = 0; r < num_rows; r++) {
        float max = into.max[r] > part.max[r] ? into.max[r] : part.max[r];
        vf mine = exp_(splat(into.max[r] - max)), other = exp_(splat(part.max[r] - max));
        into.max[r] = max;
        into.sum[r] = into.sum[r] * mine[0] + part.sum[r] * other[0];
        float *a = into.mixed + r * width, *b = part.mixed + r * width;
        for (int64_t d = 0; d < width; d += LANES) store(a + d, fma_(load(b + d), other, load(a + d) * mine));
    }
}

typedef struct { int64_t kv_head, lowest, end, span; const int32_t *table; rows_at at; } reach;

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

/* Where the keys and values of positions from … to - 1 of the tile at `begin` are. */
INLINE void locate(const attention_layer *layer, const reach *it, int64_t begin, int64_t from, int64_t to, place *at) {
    int64_t size = layer->block_size, bytes = layer->head_dim * (layer->key_scales ? 1 : size_of((int)layer->dtype));
    int64_t block = (begin + from) / size, inside = (begin + from) % size;
    at->from = from, at->to = to;
    for (int64_t j = from, count; j < to; j += count, block++, inside = 0) {
        int64_t row = (it->table[block] * layer->num_kv_heads + it->kv_head) * size + inside;
        const char *k = layer->keys + row * bytes, *v = layer->values + row * bytes;
        count = least(size - inside, to - j);
        for (int64_t i = 0; i < count; i++) at->k[j + i] = k + i * bytes, at->v[j + i] = v + i * bytes, at->row[j + i] = row + i;
    }
    for (int64_t j = 0; j < from; j++) at->k[j] = at->k[from], at->v[j] = at->v[from], at->row[j] = at->row[from];
    for (int64_t j = to; j < TILE; j++) at->k[j] = at->k[from], at->v[j] = at->v[from], at->row[j] = at->row[from];
}

/* What is seen of it->span. */
INLINE int64_t span_begin(const reach *it) { return most(it->lowest, it->span * SPAN); }
INLINE int64_t span_end(const reach *it) { return least(it->end, (it->span + 1) * SPAN); }
INLINE int64_t first_tile(const reach *it) { return span_begin(it) / TILE * TILE; }

INLINE void locate_tile(const attention_layer *layer, const reach *it, int64_t begin, place *at) {
    locate(layer, it, begin, most(span_begin(it) - begin, 0), least(span_end(it) - begin, TILE), at);
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
    for (int64_t i = 0; i < count; i++) clear(s[i], u->num_rows, w->width);
    int64_t begin = first_tile(heads), end = span_end(heads);
    locate_tile(layer, heads, begin, &places[0]);
    for (; begin < end; begin += TILE)
        for (int64_t i = 0; i < count; i++, now = !now) {
            const place *ahead = few || w->way != PLAIN ? &places[!now] : NULL;
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

static void load_queries(const work *w, const unit *u, const reach *it, float *q) {
    int64_t dim = w->layer->head_dim;
    int dtype = (int)w->layer->dtype;
#if HAS_CODES
    int8_t digits[LANES][2 * MOST_CODED_DIM] __attribute__((aligned(64)));
#endif
    for (int64_t row = 0; row < u->num_rows; row++) {
        const char *from = w->query + place_of(w, u, it, row, w->query_stride);
#if HAS_CODES
        if (w->way == CODES) {
            coded_queries coded = coded_in(q, u->num_rows);
            int few = u->num_rows <= FEW_ROWS, last = row % LANES == LANES - 1 || row == u->num_rows - 1;
            code_query(coded, row, from, dtype, dim, few ? coded.digits + row * sizeof digits[0] : digits[row % LANES]);
            if (!few && last) turn_digits(digits[0], w->width, (uint32_t *)coded.digits + row / LANES * LANES * (w->width / 2));
        }
#endif
#if HAS_PAIRS
        for (int64_t i = 0; i < dim / 2 && w->way == PAIRS; i++)
            memcpy((uint32_t *)q + query_place(u->num_rows, row, i, dim), from + 4 * i, 4);
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
            float sink = w->layer->sinks[it->kv_head * it->at.group + (it->at.first_row + row) % it->at.group];
            float max = s.max[row] > sink ? s.max[row] : sink;
            factor = exp_(splat(s.max[row] - max))[0];
            total = total * factor + exp_(splat(sink - max))[0];
        }
        vf share = splat(factor / total);
        if (w->way == CODES) {
            order_dims(s.mixed + row * w->width, w->width);
            for (int64_t d = 0; d < dim; d += LANES)
                store_some(to + d * size_of(dtype), dtype, least(dim - d, LANES), load(s.mixed + row * w->width + d) * share);
            continue;
        }
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

/* Of one job its unit and its first head. A prompt's last rows see most: they go first. */
INLINE const unit *unit_of(const work *w, long job, int64_t *head) {
    int64_t jobs = w->layer->num_kv_heads / w->heads_at_once;
    *head = job % jobs * w->heads_at_once;
    return w->units + w->num_units - 1 - job / jobs;
}

static void attend(const void *argument, long job) {
    const work *w = argument;
    int64_t first, next_first;
    const unit *u = unit_of(w, job, &first), *next = u;
    /* Few rows wait for memory, and it is faster where it is read along a block: heads are computed side by side. */
    int64_t count = u->num_rows <= FEW_ROWS && w->width <= HEAD_FLOATS / FEW_ROWS ? w->heads_at_once : 1;
    for (int64_t head = first; head < first + w->heads_at_once; head += count) {
        reach after;
        int more = head + count < first + w->heads_at_once, last = !more && job + w->threads >= w->num_jobs;
        if (more) after = reach_of(w, u, head + count);
        else if (!last) { /* threads take jobs in turns, or nearly so */
            next = unit_of(w, job + w->threads, &next_first);
            after = reach_of(w, next, next_first);
        }
        attend_heads(w, u, head, count, last ? NULL : &after);
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
    int64_t rows = least(MAX_ROWS, MAX_FLOATS / width);
    int64_t threads = tern_get_threads(), kv_heads = layer->num_kv_heads;
    int apart = 0;
    w.num_units = list_units(&w, rows, 0);
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
    while (w.heads_at_once < MOST_HEADS && kv_heads % (2 * w.heads_at_once) == 0 &&
           w.num_units * kv_heads >= 4 * threads * w.heads_at_once)
        w.heads_at_once *= 2;
    w.num_jobs = (long)(w.num_units * kv_heads / w.heads_at_once), w.threads = (long)threads;
    tern_parallel_for(attend, &w, w.num_jobs);
    if (apart) merge_spans(&w);
    free(memory);
    return 0;
}
