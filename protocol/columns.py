"""Packed columns: arrays of fixed-width little-endian numbers, carried as raw bytes inside a message.

A column costs one copy to encode and one to decode whatever its length, where a list costs an object
per number. `array.array` is the whole implementation, so neither torch nor numpy is needed to read one.
Refuses to know what the numbers mean.
"""

import sys
from array import array
from collections.abc import Iterable
from typing import Final, Literal

if sys.byteorder != "little":  # pragma: no cover - no such machine runs torch today
    raise ImportError("Tern's wire is little-endian and this machine is not")

INT32: Final = "i"
UINT32: Final = "I"
UINT64: Final = "Q"
FLOAT32: Final = "f"
ID_BYTES: Final = 4


def pack(typecode: str, numbers: Iterable[float]) -> bytes:
    """Numbers → bytes. Raises OverflowError when one does not fit the type."""
    return array(typecode, numbers).tobytes()


def unpack(typecode: Literal["i", "I", "Q"], data: bytes) -> "array[int]":
    """Bytes → array. Raises ValueError when the length is not a whole number of items."""
    column: array[int] = array(typecode)
    column.frombytes(data)
    return column


def unpack_floats(data: bytes) -> "array[float]":
    """Bytes of float32 → array."""
    column = array(FLOAT32)
    column.frombytes(data)
    return column


def pack_ids(numbers: Iterable[int]) -> bytes:
    """Token, slot or block ids (int32) → bytes."""
    return array(INT32, numbers).tobytes()


def unpack_ids(data: bytes) -> "array[int]":
    """Bytes → token, slot or block ids (int32)."""
    column = array(INT32)
    column.frombytes(data)
    return column
