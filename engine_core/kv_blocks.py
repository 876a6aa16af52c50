"""KVBlocks: which blocks hold each request's KV. Knows neither budgets nor the order of requests.

    table of group 0  (window)   ·  ·  ·  7  2  9      · NO_BLOCK: no token to come reads there, so the block
    table of group 1  (all)      0  3  1  5 11 12        is free: still findable, or somebody else's by now
                                          ▲ num_computed_tokens

All tables of a request are equally long and grow together, when tokens are about to be computed. What a
request has not yet taken of the blocks that its known tokens need is spoken for: whoever else comes or grows
leaves it there. So a prompt that was begun is computed to its end, although it takes its blocks chunk by
chunk, and a window gives back on one side what it needs on the other.
"""

from collections.abc import Iterable

from protocol.kv_groups import NO_BLOCK
from protocol.messages import EngineFacts

from .block_pool import BlockPool
from .prefix_cache import PrefixCache
from .request import Request


class KVBlocks:
    """The blocks of one worker group in one epoch."""

    def __init__(self, facts: EngineFacts, *, chunk: int, caching: bool) -> None:
        """`chunk`: most tokens of one request in one step."""
        size = self.block_size = facts.block_size
        self.groups = facts.kv_groups
        self.prefix_cache = PrefixCache(size, self.groups, enabled=caching)
        self.pool = BlockPool(facts.num_blocks, self.prefix_cache.is_cached, self.prefix_cache.evict)
        self._sliding = tuple((i, group) for i, group in enumerate(self.groups) if group.window is not None)
        longest = facts.max_model_len
        self._most = tuple(group.most_blocks(longest, chunk, size) for group in self.groups)

    # ── how many ────────────────────────────────────────────────────────────────────────────────

    def spoken_for(self, requests: Iterable[Request]) -> int:
        """Blocks that these have still to take until all they know is computed, at most."""
        return sum([self._missing(request) for request in requests])

    def _missing(self, request: Request) -> int:
        whole = -(-request.num_tokens // self.block_size)
        held = request.num_blocks
        return sum(
            [
                min(whole - held, max(most - held + first, 0))
                for most, first in zip(self._most, request.first_blocks, strict=True)
            ]
        )

    # ── a request comes and goes ────────────────────────────────────────────────────────────────

    def enter(self, request: Request, reserve: int) -> bool:
        """Hold what is found of the tokens that it knows, if the blocks that are still missing are there and
        `reserve` remain. Otherwise do nothing and return False."""
        pool, cache, size = self.pool, self.prefix_cache, self.block_size
        keys: list[bytes] = []
        if cache.enabled:
            self._extend_keys(request)
            if not request.wants_every_token:
                keys = request.block_keys
        # The last known token is always computed: its logits are what is wanted.
        request.block_tables = cache.match(keys, (request.num_tokens - 1) // size)
        request.num_blocks = len(request.block_tables[0])
        found = request.num_blocks * size
        request.first_blocks = [group.first_block(found, size) for group in self.groups]
        held = self._held(request)
        num_revived = sum([block in pool.free for block in held])
        if self._missing(request) + num_revived + reserve > pool.num_free:
            self.forget(request)
            return False
        for block in held:
            pool.share(block)
        request.num_findable_blocks = request.num_blocks
        request.num_computed_tokens = found
        return True

    def leave(self, request: Request, fence: int) -> None:
        """Nobody writes to its blocks for it after step `fence`."""
        self.pool.release(self._held(request), fence)
        self.forget(request)

    @staticmethod
    def forget(request: Request) -> None:
        """It holds nothing."""
        request.block_tables, request.first_blocks, request.num_blocks = (), [], 0

    def distrust(self, request: Request) -> None:
        """Its numbers are bad: nobody may find its blocks again."""
        self.prefix_cache.distrust(request.block_keys[: request.num_findable_blocks])

    # ── a request grows ─────────────────────────────────────────────────────────────────────────

    def register(self, request: Request, computed: int) -> None:
        """Make the blocks findable that are full of known tokens whose KV is planned: those of prompts with
        each chunk; those of answers, which nobody asks for before, when they end or leave a window.

        A plan may rely on KV that an earlier plan, or the same one, writes: workers execute plans in
        order and write before they read.
        """
        known = len(request.token_ids)
        full = (computed if computed < known else known) // self.block_size
        first = request.num_findable_blocks
        cache = self.prefix_cache
        if full <= first or not cache.enabled:
            return
        keys = request.block_keys
        if full > len(keys):
            self._extend_keys(request)
        for group, table in enumerate(request.block_tables):
            for index in range(first, full):
                if (block := table[index]) != NO_BLOCK:
                    cache.insert(group, keys[index], block)
        request.num_findable_blocks = full

    def trim(self, request: Request, computed: int, fence: int) -> None:
        """Release what the tokens behind `computed` ones do not read, once step `fence` does not either."""
        if self._sliding:
            self.register(request, computed)
        for group, kind in self._sliding:
            first = request.first_blocks[group]
            stop = kind.first_block(computed, self.block_size)
            if stop > first:
                table = request.block_tables[group]
                self.pool.release(table[first:stop], fence)
                table[first:stop] = [NO_BLOCK] * (stop - first)
                request.first_blocks[group] = stop

    def room(self, request: Request, reserve: int) -> int:
        """For how many more tokens there are places in its tables, or free blocks beside `reserve`."""
        free = max(self.pool.num_free - reserve, 0) // len(self.groups)
        return (request.num_blocks + free) * self.block_size - request.num_computed_tokens

    def grow(self, request: Request) -> None:
        """Take one more block for each of its tables."""
        for table in request.block_tables:
            table.append(self.pool.take())
        request.num_blocks += 1

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    def _held(self, request: Request) -> list[int]:
        """In the order of the sequence."""
        tables = request.block_tables
        if len(tables) == 1 and not self._sliding:
            return tables[0]
        return [block for row in zip(*tables, strict=True) for block in row if block != NO_BLOCK]

    def _extend_keys(self, request: Request) -> None:
        cache = self.prefix_cache
        if not request.cache_root:
            request.cache_root = cache.root(request.tenant, request.cache_salt, request.adapter)
        cache.extend(request.block_keys, request.cache_root, request.token_ids)
