"""Bounded types: how large a number, a text or a column of a message may be. Knows no messages.

A decoder refuses what is beyond them, so that a frame can make it allocate no more than a small multiple of
the frame's own length.
"""

from typing import Annotated

from msgspec import Meta

MAX_IDS = 1 << 20
"""Token ids of one prompt or one answer."""
MAX_ENTRIES = 1 << 16
"""Of a list that has an entry per request."""

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
RequestId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""A counter of the client's; unique among one client's requests, and never a user's string."""
Epoch = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Label = Annotated[str, Meta(max_length=256)]
Prose = Annotated[str, Meta(max_length=4096)]
Column = Annotated[bytes, Meta(max_length=4 * MAX_IDS)]
"""int32 or uint32 or float32, at most 2^20 of them."""
WideColumn = Annotated[bytes, Meta(max_length=8 * MAX_IDS)]
"""uint64, at most 2^20 of them, or int32, twice as many."""
FlagColumn = Annotated[bytes, Meta(max_length=MAX_IDS)]
"""uint8, at most 2^20 of them."""
Vector = Annotated[bytes, Meta(max_length=4 << 16)]
"""float32, at most 2^16 of them."""
TableColumn = Annotated[bytes, Meta(max_length=16 * MAX_IDS)]
"""int32 or float32, several per row: as much as a frame holds."""
