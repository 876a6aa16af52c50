/* What a unit of work sees: positions of one sequence and KV head, span after span, and where they lie; and its rows' state. */
#pragma once
#include "attention_tile.h"

typedef struct { int64_t kv_head, lowest, end, span; const int32_t *table; rows_at at; } reach;

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

/* ── state ────────────────────────────────────────────────────────────────────────────────────── */

/* Of up to `num_rows` rows. */
INLINE int64_t state_floats(int64_t num_rows, int64_t width) { return num_rows * width + (2 * num_rows + LANES - 1) / LANES * LANES; }

INLINE state state_in(float *memory, int64_t num_rows, int64_t width) {
    float *level = memory + num_rows * width;
    return (state){level, level + num_rows, memory};
}

INLINE void clear(state s, int64_t from, int64_t to, int64_t width) {
    for (int64_t r = from; r < to; r++) s.level[r] = NOTHING, s.sum[r] = 0;
    memset(s.mixed + from * width, 0, sizeof(float) * (size_t)((to - from) * width));
}

/* into = into ⊕ part */
INLINE void merge(state into, state part, int64_t num_rows, int64_t width) {
    for (int64_t r = 0; r < num_rows; r++) {
        float level = into.level[r] > part.level[r] ? into.level[r] : part.level[r];
        vf less = exp2_(splat(into.level[r] - level)), more = exp2_(splat(part.level[r] - level));
        into.level[r] = level;
        into.sum[r] = into.sum[r] * less[0] + part.sum[r] * more[0];
        float *a = into.mixed + r * width, *b = part.mixed + r * width;
        for (int64_t d = 0; d < width; d += LANES) store(a + d, fma_(load(b + d), more, load(a + d) * less));
    }
}
