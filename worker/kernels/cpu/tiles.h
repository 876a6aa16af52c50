/* Rows of x as the tiles of a product read them: units of four bytes of some rows at a time,

       [tile][unit][row of the tile]

   so that a tile has one stream to read. Tiles share the rows evenly. */

#ifndef TERN_TILES_H
#define TERN_TILES_H

#include "activations.h"

typedef struct {
    uint32_t *units; /* of tile t from first row of t · columns on */
    long columns;    /* units of a row */
    long rows, count;
} Tiles;

INLINE long tern_first_row(const Tiles *tiles, long tile) {
    long more = tiles->rows % tiles->count;
    return tile * (tiles->rows / tiles->count) + (tile < more ? tile : more);
}

/* Valid until the calling thread's next call. At most `most` rows (up to 16) make a tile. */
Tiles tern_tiles_of_codes(const Activations *x, long m, long most);
/* Of a call's x, k columns, which stay as they are (pairs of 16-bit numbers) or become float32. */
Tiles tern_tiles_of_rows(const Call *call, long k, int pairs, long most);

/* Units of at most 16 rows of `bytes` bytes, filled up with zeros → [unit][row], whose units are `stride` numbers apart. */
void tern_interleave(const void *const *rows, int count, long bytes, uint32_t *to, long stride);

#endif
