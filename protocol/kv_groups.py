"""KV groups: layers that keep the KV of the same positions share one block table per sequence.

A model of one kind of layers is one group. Otherwise its layers are split into groups of one window and as
many layers each, so that a block has the same bytes in every group and all come from one pool:

    Gemma 3, 26 layers      group 0   window 512   layers 0 1 2 3       table  ·  ·  ·  7  2  9
                            group 1   all          layers 5 11 17 23           0  3  1  5 11 12
                            group 2   window 512   layers 4 6 7 8              ·  ·  ·  4  8  6
                            …                                           · NO_BLOCK: has left the window

All tables of a sequence are equally long: token i lives in table[i // block_size], in every group. Of a
block that no later token reads, the engine core disposes as soon as no step in flight does either: neither
side says so to the other, both follow from `first_block` and the number of computed tokens.

Another kind of KV is another group, and a worker that knows what lies in its blocks; scheduler and runner
stay as they are. MLA: a window of None, other bytes. A linear-attention layer, whose state stands for all
tokens before: window 2, because a token needs only what lies with its predecessor; the block holds the state
after its last computed token, and is at its border a snapshot that prefix hits find. Attention sinks, whose
first blocks never leave: `first_block` becomes the end of a hole that begins behind them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

NO_BLOCK = -1
"""In a block table: nothing will read there any more."""
MOST_GROUPS = 256


class KVGroup(Struct, frozen=True, array_like=True):
    window: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)] | None = None
    """Tokens that a token sees, itself included; None: all before it."""

    def first_block(self, num_computed: int, block_size: int) -> int:
        """The first block that the token behind so many computed ones reads, and so any later one."""
        return 0 if self.window is None else max(num_computed - self.window + 1, 0) // block_size

    def most_blocks(self, length: int, chunk: int, block_size: int) -> int:
        """Held at once by a sequence that grows to `length` tokens, at most `chunk` of them per step."""
        whole = -(-length // block_size)
        if self.window is None:
            return whole
        span = self.window - 1 + chunk  # tokens, which may begin at the end of a block
        return min(whole, (span + block_size - 2) // block_size + 1)


def blocks_of(groups: Sequence[KVGroup], length: int, chunk: int, block_size: int) -> int:
    """Blocks of all groups that a sequence of `length` tokens needs at once, see `most_blocks`."""
    return sum(group.most_blocks(length, chunk, block_size) for group in groups)


def longest(groups: Sequence[KVGroup], num_blocks: int, limit: int, chunk: int, block_size: int) -> int:
    """The longest sequence, of at most `limit` tokens, that so many blocks can hold."""

    def needed(length: int) -> int:
        return blocks_of(groups, length, chunk, block_size)

    return bisect_right(range(limit + 1), num_blocks, key=needed) - 1
