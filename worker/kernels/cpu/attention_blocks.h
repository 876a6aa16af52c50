/* Many rows of one KV head, those of prompts: a span's keys and values are brought into the order of the products once, and serve all
 * rows of a unit, block after block:
 *
 *     span     its keys and values, packed                          in the second cache, with the queries and sums of
 *     block    MANY rows: scores and weights of all tiles of it     a unit; tiles of keys and weights in the first
 *     rows     six at a time: mixed values of the span              in registers, joined to those of earlier spans
 *
 * A block computes nothing behind the last position that its rows see. AVX-512 only.
 */
#pragma once
#include "attention_codes.h"
#include "attention_pairs.h"
#include "attention_reach.h"

/* How rows are computed: in float32; bf16 in pairs (attention_pairs.h); int8 as it lies (attention_codes.h). */
enum { PLAIN, PAIRS, CODES };

/* Rows of a unit, and their mixed values; fewer where threads would have nothing to do. */
enum { UNIT_ROWS = 512, UNIT_FLOATS = 65536, LEAST_UNIT_ROWS = 64 };

#if HAS_PAIRS || HAS_CODES
/* Queries: of pairs [MANY rows][pair of dims][row]; of codes as codes.h says. */
typedef union { uint32_t pairs[UNIT_FLOATS / 2]; float codes[UNIT_FLOATS / 2 + 2 * UNIT_ROWS]; } packed_queries;

typedef union {
#if HAS_PAIRS
    paired_span pairs;
#endif
#if HAS_CODES
    coded_tile codes[TILES];
#endif
} packed_span;

/* What is seen of it->span is needed soon. */
INLINE void wish_for_span(const attention_layer *layer, const reach *it, wishes *w) {
    for (int64_t begin = first_tile(it); begin < span_end(it); begin += TILE) {
        place there;
        locate_tile(layer, it, begin, &there);
        for (int64_t j = there.from; j < there.to; j++) wish(w, there.k[j]), wish(w, there.v[j]);
    }
}

INLINE void pack_span(const attention_layer *layer, int way, const reach *it, packed_span *to) {
    for (int64_t begin = first_tile(it); begin < span_end(it); begin += TILE) {
        int64_t tile = begin / TILE % TILES;
        place here;
        locate_tile(layer, it, begin, &here);
#if HAS_PAIRS
        if (way == PAIRS) pair_tile(&here, layer->head_dim, tile, &to->pairs);
#endif
#if HAS_CODES
        if (way == CODES) load_tile(layer, &here, NULL, to->codes + tile);
#endif
    }
}

/* `rows` rows from `row` on, at most MANY. */
INLINE void attend_block(const attention_layer *layer, int way, const reach *it, int64_t row, int64_t rows, const packed_queries *q,
                         const packed_span *span, int64_t from, int64_t to, int fresh, wishes *ahead, state total) {
    int64_t begin = it->span * SPAN;
#if HAS_PAIRS
    if (way == PAIRS) {
        const uint32_t *queries = q->pairs + row * (layer->head_dim / 2);
        paired_block(&it->at, layer, row, rows, queries, begin, from - begin, to - begin, &span->pairs, fresh, ahead, total);
    }
#endif
#if HAS_CODES
    if (way == CODES)
        coded_block(&it->at, layer, row, rows, coded_in(q->codes, UNIT_ROWS), begin, from - begin, to - begin, span->codes, fresh, ahead,
                    total);
#endif
}

/* Spans it->span … end - 1 of a unit's rows. `after`: what is needed behind them. */
static void attend_blocks(const attention_layer *layer, int way, reach it, int64_t num_rows, int64_t width, int64_t end,
                          const packed_queries *q, wishes *after, state total) {
    packed_span span __attribute__((aligned(64)));
    for (int64_t first = it.span; it.span < end; it.span++) {
        pack_span(layer, way, &it, &span);
        wishes next = {0, 0}, *ahead = it.span + 1 < end ? &next : after;
        reach then = it;
        then.span++;
        if (ahead == &next) wish_for_span(layer, &then, &next);
        for (int64_t row = 0; row < num_rows; row += MANY) {
            int64_t rows = least(num_rows - row, MANY), stop = position_of(&it.at, row + rows - 1) + 1;
            int64_t start = it.at.window ? most(position_of(&it.at, row) + 1 - it.at.window, 0) : 0;
            int64_t from = most(start, it.span * SPAN), to = least(stop, (it.span + 1) * SPAN);
            int fresh = it.span == first || it.span == start / SPAN;
            if (from < to) attend_block(layer, way, &it, row, rows, q, &span, from, to, fresh, ahead, total);
            else if (it.span == first) clear(total, row, row + rows, width);
        }
    }
}
#endif
