"""PrefixCache: finds the KV blocks of token prefixes again. Knows nothing of who holds a block.

A full block's key is a hash of (parent's key, its token ids); the first parent is a keyed hash of (tenant,
salt, adapter), so requests share blocks only within one of those. The key is random per engine core and
no block's key ever leaves it: nobody outside can construct a collision or test for a prefix.
"""

import hashlib
import secrets
from array import array

_KEY_BYTES = 16
_hash = hashlib.blake2b


class PrefixCache:
    """A two-way table between keys and blocks."""

    def __init__(self, block_size: int, *, enabled: bool = True) -> None:
        self.block_size = block_size
        self.enabled = enabled
        self.block_of: dict[bytes, int] = {}
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

    def match(self, keys: list[bytes], limit: int) -> list[int]:
        """Blocks of the longest cached prefix, at most `limit` of them."""
        blocks: list[int] = []
        for key in keys[:limit]:
            block = self.block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, key: bytes, block: int) -> None:
        """This block holds (or will, before any later plan is executed) the KV of this key's tokens.

        The first block of a key stays: a second one with the same content is simply not found again.
        """
        if key not in self.block_of and block not in self.key_of:
            self.block_of[key] = block
            self.key_of[block] = key

    def evict(self, block: int) -> None:
        """Forget the block, because it is about to hold something else, or holds bad numbers."""
        key = self.key_of.pop(block, None)
        if key is not None:
            del self.block_of[key]

    def is_cached(self, block: int) -> bool:
        return block in self.key_of

    def clear(self) -> None:
        """Forget everything. Blocks that are held stay held."""
        self.block_of.clear()
        self.key_of.clear()
