/* Packing of panels.h, once, when weights are loaded. */

#include "panels.h"
#include "pool.h"
#include "tiles.h"

typedef struct {
    const Matrix *w;
    char *to;
} Packing;

#define COLUMNS 1024 /* of nf4 at once */

/* Blocks of 64 columns in 32 bytes, byte j with columns j (low) and j + 32 → bytes of units. */
static void nf4_units(const uint8_t *codes, long k, long columns, uint8_t *to) {
    for (long i = 0; i < (columns + 7) / 8 * 8; i++) {
        long at = k + i;
        uint8_t code = codes[at / 64 * 32 + at % 32] >> (at % 64 < 32 ? 0 : 4) & 15, *byte = to + i / 8 * 4 + i % 4;
        *byte = i % 8 < 4 ? code : (uint8_t)(*byte | code << 4);
    }
}

static void pack_nf4(const void *const *rows, int count, long k, uint32_t *to) {
    uint8_t room[16][COLUMNS / 2];
    const void *of[16];
    for (long at = 0; at < k; at += COLUMNS) {
        long some = k - at < COLUMNS ? k - at : COLUMNS;
        for (int r = 0; r < count; r++) {
            nf4_units(rows[r], at, some, room[r]);
            of[r] = room[r];
        }
        tern_interleave(of, count, (some + 7) / 8 * 4, to + at / 8 * PANEL, PANEL);
    }
}

void tern_pack_panel(const Matrix *w, long index, void *to) {
    long bytes = tern_panel_bytes(w);
    char *panel = to;
    int half = tern_unit_bytes(w->kind) == 2;
    long size = w->kind == F32 ? 4 : w->kind == F16 || w->kind == BF16 ? 2 : 1;
    for (long r = 0; r < PANEL; r += 16) {
        const void *rows[16];
        int count = 0;
        for (; count < 16 && index * PANEL + r + count < w->n; count++) {
            long own;
            const Part *part = tern_part_of(w, index * PANEL + r + count, &own);
            rows[count] = (const char *)part->weight + own * part->stride;
        }
        if (count < 16 && r == 0) memset(panel, 0, bytes);
        if (count < 16 && r > 0)
            for (long u = 0; u < tern_units(w); u++)
                memset(panel + (u * PANEL + r) * tern_unit_bytes(w->kind), 0, 16 * tern_unit_bytes(w->kind));
        if (half)
            for (int i = 0; i < count; i++)
                for (long k = 0; k < w->k; k++)
                    memcpy(panel + (k * PANEL + r + i) * 2, (const char *)rows[i] + 2 * k, 2); /* a checkpoint may lie at any byte */
        else if (w->kind == NF4)
            pack_nf4(rows, count, w->k, (uint32_t *)panel + r);
        else
            tern_interleave(rows, count, w->k * size, (uint32_t *)panel + r, PANEL);
    }
    if (w->kind == INT8 && W8_MOVED)
        for (long i = 0; i < bytes; i++) panel[i] ^= (char)W8_MOVED;
}

static void pack_panel(const void *data, long index) {
    const Packing *job = data;
    tern_pack_panel(job->w, index, job->to + index * tern_panel_bytes(job->w));
}

static long panels_of(const Matrix *w) { return (w->n + PANEL - 1) / PANEL; }

long tern_packed_bytes(const Matrix *w) { return panels_of(w) * tern_panel_bytes(w); }

void tern_pack(const Matrix *w, void *to) {
    Packing job = {w, to};
    tern_parallel_for(pack_panel, &job, panels_of(w));
}
