"""PrefixCache: finds the KV blocks of token prefixes again. Knows nothing of who holds a block.

A full block's key is a hash of (parent's key, its token ids); the first parent is a keyed hash of (tenant,
salt, adapter), so requests share blocks only within one of those. The key is random per engine core and
no block's key ever leaves it: nobody outside can construct a collision or test for a prefix.

Each KV group has blocks of its own for a key. A prefix is found if every group has those of its blocks that
the next token reads: all of them, or with a window only the last ones.
"""

import hashlib
import secrets
from array import array
from collections.abc import Iterable, Sequence

from protocol.kv_groups import NO_BLOCK, KVGroup

_KEY_BYTES = 16
_hash = hashlib.blake2b


class PrefixCache:
    """A two-way table between keys and blocks."""

    def __init__(
        self, block_size: int, groups: Sequence[KVGroup] = (KVGroup(),), *, enabled: bool = True
    ) -> None:
        self.block_size = block_size
        self.groups = groups
        self.enabled = enabled
        self.block_of: tuple[dict[bytes, int], ...] = tuple({} for _ in groups)
        """Of each group."""
        self.key_of: dict[int, bytes] = {}
        self._secret = secrets.token_bytes(32)

    def root(self, tenant: str, salt: str, adapter: str) -> bytes:
        """Parent of first blocks. Lengths are hashed too, so that fields cannot run into each other."""
        digest = hashlib.blake2b(digest_size=_KEY_BYTES, key=self._secret)
        for field in (tenant, salt, adapter):
            data = field.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()

    def extend(self, keys: list[bytes], root: bytes, token_ids: "array[int]") -> None:
        """Append the keys of all full blocks of `token_ids` that `keys` does not hold yet. 1 µs a block."""
        size = self.block_size
        parent = keys[-1] if keys else root
        for first in range(len(keys) * size, len(token_ids) - size + 1, size):
            ids = token_ids[first : first + size].tobytes()
            parent = _hash(parent + ids, digest_size=_KEY_BYTES).digest()
            keys.append(parent)

    def match(self, keys: list[bytes], limit: int) -> tuple[list[int], ...]:
        """The longest cached prefix, of at most `limit` blocks: a table of each group, all equally long."""
        length = self._longest(keys, limit)
        tables = []
        for group, found in zip(self.groups, self.block_of, strict=True):
            first = group.first_block(length * self.block_size, self.block_size)
            tables.append([NO_BLOCK] * first + [found[key] for key in keys[first:length]])
        return tuple(tables)

    def _longest(self, keys: list[bytes], limit: int) -> int:
        """One pass over the keys, with the number of blocks that each group has without a gap so far."""
        size, length = self.block_size, 0
        seen = [(0, group, found) for group, found in zip(self.groups, self.block_of, strict=True)]
        for end, key in enumerate(keys[:limit], 1):
            complete = True
            for place, (run, group, found) in enumerate(seen):
                run = run + 1 if key in found else 0
                seen[place] = run, group, found
                if run < end - group.first_block(end * size, size):
                    if group.window is None:
                        return length
                    complete = False
            if complete:
                length = end
        return length

    def insert(self, group: int, key: bytes, block: int) -> None:
        """This block holds (or will, before any later plan is executed) the KV of this key's tokens.

        The first block of a key stays: a second one with the same content is simply not found again.
        """
        found = self.block_of[group]
        if key not in found and block not in self.key_of:
            found[key] = block
            self.key_of[block] = key

    def evict(self, block: int) -> None:
        """Forget the block, because it is about to hold something else."""
        key = self.key_of.pop(block, None)
        if key is not None:
            for found in self.block_of:
                if found.get(key) == block:
                    del found[key]

    def distrust(self, keys: Iterable[bytes]) -> None:
        """Forget all blocks of these keys: they may hold bad numbers."""
        for key in keys:
            for found in self.block_of:
                if (block := found.pop(key, None)) is not None:
                    del self.key_of[block]

    def is_cached(self, block: int) -> bool:
        return block in self.key_of

    def clear(self) -> None:
        """Forget everything. Blocks that are held stay held."""
        for found in self.block_of:
            found.clear()
        self.key_of.clear()
