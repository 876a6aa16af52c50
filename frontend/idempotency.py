"""Key: what makes a request the same one when it comes again. Knows neither HTTP nor tokens.

Idempotency-Key + tenant ─▶ one name per choice for the engine core, and a seed if the request has none,
                            so that even an answer which nobody has kept comes out the same again
method, path and body ────▶ digest: the same key for anything else is refused
"""

import hashlib

from msgspec import Struct

from protocol.sampling import MAX_SEED

_HEX_DIGITS = 32


class Key(Struct, frozen=True):
    """Of one request. The client's own key never leaves this process."""

    root: str
    digest: str

    @classmethod
    def of(cls, tenant: str, key: str, method: str, path: str, body: bytes) -> "Key":
        head = f"{method} {path}\n".encode()
        return cls(_hash(tenant.encode(), key.encode()), _hash(head, body))

    def of_choice(self, index: int) -> str:
        """Name of one choice's request."""
        return _hash(self.root.encode(), b"%d" % index)

    @property
    def seed(self) -> int:
        """For a request that brings none."""
        return int(_hash(self.root.encode(), b"seed"), 16) & MAX_SEED


def _hash(*parts: bytes) -> str:
    """Of the parts, each with its length, so that no two lists of parts look alike."""
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.sha256(whole).hexdigest()[:_HEX_DIGITS]
