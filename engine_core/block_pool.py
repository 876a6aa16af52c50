"""BlockPool: which KV blocks are free and how many requests hold each. Knows nothing of tokens or hashes.

    free ──take──▶ held (count 1) ──share──▶ held (count n) ──release──▶ fenced ──settle──▶ free
      └──────────────share (a cached block is found again)──────▲

A released block waits behind a fence: the last step that was sent before the release and may still
write to it. Free blocks are handed out least recently used first; blocks that nobody could find again
go first of all.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable


class BlockPool:
    """Blocks 0 … num_blocks-1. All operations are O(1) per block."""

    def __init__(
        self, num_blocks: int, is_cached: Callable[[int], bool], evict: Callable[[int], None]
    ) -> None:
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.fenced: deque[tuple[int, int]] = deque()
        """(step, block), in rising order of steps."""
        self._fence_of = [-1] * num_blocks
        self._is_cached = is_cached
        self._evict = evict

    @property
    def num_free(self) -> int:
        """Blocks that `take` can hand out now; fenced ones are on their way."""
        return len(self.free)

    def take(self) -> int:
        """The least recently used free block; whatever was cached in it is evicted."""
        block, _ = self.free.popitem(last=False)
        self._evict(block)
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more request holds this block, which may have been free or fenced."""
        self.references[block] += 1
        self.free.pop(block, None)

    def release(self, blocks: Iterable[int], fence: int) -> None:
        """One request fewer holds each of these; nobody may write to them after step `fence`.

        Given in the order of the sequence, they are freed tail first: a shared head lives longest.
        """
        for block in reversed(list(blocks)):
            self.references[block] -= 1
            if self.references[block] == 0:
                self._fence_of[block] = fence
                self.fenced.append((fence, block))

    def settle(self, step: int) -> None:
        """The result of `step` is back: blocks fenced up to it are free."""
        fenced = self.fenced
        while fenced and fenced[0][0] <= step:
            fence, block = fenced.popleft()
            if self.references[block] or self._fence_of[block] != fence or block in self.free:
                continue  # found again in the meantime, and perhaps released behind a later fence
            self.free[block] = None
            if not self._is_cached(block):
                self.free.move_to_end(block, last=False)

    def check(self, holders: dict[int, int]) -> None:
        """Assert the invariants; `holders` counts, per block, the requests whose table contains it."""
        fenced = {block for _, block in self.fenced}
        for block, references in enumerate(self.references):
            assert references == holders.get(block, 0), f"block {block}: {references} references"
            owned = (block in self.free) + (references > 0)
            assert owned <= 1, f"block {block} is both free and held"
            assert owned or block in fenced, f"block {block} is lost"
