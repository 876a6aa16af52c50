/* Packing of panels.h, once, when weights are loaded. */

#include "panels.h"
#include "pool.h"
#include "tiles.h"

typedef struct {
    const Matrix *w;
    char *to;
} Packing;

static void pack_panel(const void *data, long index) {
    const Packing *job = data;
    const Matrix *w = job->w;
    long bytes = tern_panel_bytes(w);
    char *panel = job->to + index * bytes;
    int half = tern_unit_bytes(w->kind) == 2;
    long size = w->kind == INT8 ? 1 : w->kind == F32 ? 4 : 2;
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
                    ((uint16_t *)panel)[k * PANEL + r + i] = ((const uint16_t *)rows[i])[k];
        else if (count)
            tern_interleave(rows, count, w->k * size, (uint32_t *)panel + r, PANEL);
    }
    if (w->kind == INT8 && W8_MOVED)
        for (long i = 0; i < bytes; i++) panel[i] ^= (char)W8_MOVED;
}

static long panels_of(const Matrix *w) { return (w->n + PANEL - 1) / PANEL; }

long tern_packed_bytes(const Matrix *w) { return panels_of(w) * tern_panel_bytes(w); }

void tern_pack(const Matrix *w, void *to) {
    Packing job = {w, to};
    tern_parallel_for(pack_panel, &job, panels_of(w));
}
