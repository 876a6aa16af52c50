"""WeightImage: weights as the kernels in C read them, in memory that outlives the worker.

    worker          fills a file of anonymous memory while it loads, seals it, and hands its descriptor on
    supervisor      holds the descriptor, and with it the memory, whatever becomes of the worker
    next worker     gets it with its Start, maps it, and has nothing to read, round or pack

    ┌ header, 64 bytes ─────────────────────┬ tensors, each at a multiple of 64 ┬ manifest ┐
    │ magic · where the manifest is, and of │                                   │ msgpack  │
    │ how many bytes · its SHA-256          │                                   │          │
    └───────────────────────────────────────┴───────────────────────────────────┴──────────┘

A worker that is killed while it fills its file takes the file with it: only complete ones are handed on. They
cannot be written any more: sealed for everyone, and mapped for reading, so that a stray write is a fault and
not another model. One that was made of other files, options or kernels is emptied by its heir, so that its
memory is free before the next is filled.

Knows matrices as data only (kernels/stored_matrix.py), and neither model nor checkpoint.
"""

import ctypes
import fcntl
import hashlib
import math
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from .checkpoint import DTYPES
from .kernels.cpu.library import Library
from .kernels.matmul import Matrix
from .kernels.stored_matrix import StoredMatrix, restored, to_store
from .memory import total_memory

VERSION = 1
"""Of the file, and of what its tensors mean to the kernels."""
MAGIC = b"tern weights\0\0\0\0"
ALIGNMENT = 64
"""Of tensors: a cache line, and the header."""
_SEAL_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE of Linux 5.1, which Python does not name: as F_SEAL_WRITE, but our own map may stay."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

HandOn = Callable[[int], None]
"""Given a descriptor, which is closed afterwards."""


class _Manifest(Struct, frozen=True):
    fingerprint: str
    matrices: dict[str, msgspec.Raw]
    """A StoredMatrix each, whose tensors are (offset, shape, name of the type)."""


class _Unusable(Exception):
    """Says why."""


class WeightImage:
    """Either found, or being filled."""

    def __init__(
        self,
        memory: mmap.mmap,
        end: int,
        descriptor: int,
        fingerprint: str,
        kernels: Library,
        hand_on: HandOn,
    ) -> None:
        """See `open`. `descriptor`: of one that is to be filled."""
        self.found = descriptor < 0
        """All matrices are there."""
        self._map = memory
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._end = end
        self._descriptor = descriptor
        self._fingerprint = fingerprint
        self._kernels = kernels
        self._hand_on = hand_on
        self._encoded: dict[str, msgspec.Raw] = {}
        self._stored: dict[str, StoredMatrix] = {}
        self._decoder = msgspec.msgpack.Decoder(StoredMatrix, dec_hook=self._tensor)

    @classmethod
    def open(cls, descriptor: int, hand_on: HandOn, fingerprint: str, kernels: Library) -> Self | None:
        """The file behind the descriptor, which is closed (-1: there is none), if it has this fingerprint;
        else a new one, handed on when it is complete. None, which is said, where the system allows none."""
        try:
            if descriptor >= 0:
                try:
                    return cls._open(descriptor, fingerprint, kernels)
                except _Unusable as why:
                    _say(f"what the last worker left of weights is not used: {why}")
                    os.ftruncate(descriptor, 0)
                finally:
                    os.close(descriptor)
            descriptor = os.memfd_create("tern-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(descriptor, capacity := total_memory())
                memory = mmap.mmap(descriptor, capacity)
            except OSError:
                os.close(descriptor)
                raise
            return cls(memory, ALIGNMENT, descriptor, fingerprint, kernels, hand_on)
        except OSError as error:
            _say(_NOT_KEPT.format(error.strerror))
            return None

    @classmethod
    def _open(cls, descriptor: int, fingerprint: str, kernels: Library) -> Self:
        size = os.fstat(descriptor).st_size
        if size < ALIGNMENT:
            raise _Unusable("it is empty")
        memory = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE)
        image = cls(memory, size, -1, fingerprint, kernels, os.close)
        _protect(image._address, size)
        try:
            manifest = _read_manifest(memory)
            if manifest.fingerprint != fingerprint:
                raise _Unusable("files, options or kernels have changed since then")
            image._stored = {name: image._decoder.decode(raw) for name, raw in manifest.matrices.items()}
        except msgspec.MsgspecError as error:
            raise _Unusable(f"it is damaged ({error})") from None
        _say(f"the weights ({size >> 20} MiB) are those that the last worker left")
        return image

    @property
    def num_bytes(self) -> int:
        """Of memory that was taken before this process began."""
        return self._end if self.found else 0

    def matrix(self, name: str) -> Matrix:
        """One that was found."""
        return restored(self._stored[name], self._kernels)

    # ── filling ─────────────────────────────────────────────────────────────────────────────────

    def allocate(self, num_bytes: int) -> Tensor:
        """An Allocate, see kernels/native_matrix.py."""
        begin, self._end = self._end, self._end + -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return torch.frombuffer(self._map, dtype=torch.uint8, count=num_bytes, offset=begin)

    def put(self, name: str, matrix: Matrix) -> Matrix:
        """The same matrix, but all of it in the file."""
        assert name not in self._encoded, name
        encoded = msgspec.msgpack.encode(to_store(matrix), enc_hook=self._place)
        self._encoded[name] = msgspec.Raw(encoded)
        return restored(self._decoder.decode(encoded), self._kernels)

    def finish(self) -> None:
        """All is there: seal the file and hand it on, unless nothing was put into it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            if self._encoded:
                self._seal(descriptor)
                self._hand_on(descriptor)
        except OSError as error:
            _say(_NOT_KEPT.format(error.strerror))
        finally:
            os.close(descriptor)

    def _seal(self, descriptor: int) -> None:
        manifest = msgspec.msgpack.encode(_Manifest(self._fingerprint, self._encoded))
        begin, self._end = self._end, self._end + len(manifest)
        self._map[begin : self._end] = manifest
        self._map[:ALIGNMENT] = _header(begin, manifest)
        _protect(self._address, len(self._map))
        os.ftruncate(descriptor, self._end)
        with suppress(OSError):  # of an older kernel: then it is only our own map that cannot be written
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE)

    # ── tensors ─────────────────────────────────────────────────────────────────────────────────

    def _place(self, tensor: Any) -> tuple[int, tuple[int, ...], str]:
        """Where it lies in the file; what does not yet is copied."""
        offset = tensor.data_ptr() - self._address
        if not ALIGNMENT <= offset < self._end:
            copy = self.allocate(tensor.nbytes).copy_(tensor.contiguous().reshape(-1).view(torch.uint8))
            offset = copy.data_ptr() - self._address
        return offset, tuple(tensor.shape), _NAMES[tensor.dtype]

    def _tensor(self, _: type, place: Any) -> Tensor:
        offset, shape, name = msgspec.convert(place, tuple[int, tuple[int, ...], str])
        dtype, count = DTYPES.get(name, torch.uint8), math.prod(shape)
        if name not in DTYPES or not ALIGNMENT <= offset <= self._end - count * dtype.itemsize or count < 1:
            raise ValueError(f"there is no tensor {place}")
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)


_NOT_KEPT = "the weights are not kept for the next worker: {}"


def fingerprint(*decisive: object) -> str:
    """Of all that decides what is in a file: options, files, kernels."""
    return hashlib.sha256(msgspec.json.encode([VERSION, *decisive])).hexdigest()


def _header(begin: int, manifest: bytes) -> bytes:
    place = begin.to_bytes(8, "little") + len(manifest).to_bytes(8, "little")
    return MAGIC + place + hashlib.sha256(manifest).digest()


def _read_manifest(memory: mmap.mmap) -> _Manifest:
    """Raises _Unusable or MsgspecError."""
    begin, length = (int.from_bytes(memory[at : at + 8], "little") for at in (16, 24))
    manifest = memory[begin : begin + length]
    if memory[:ALIGNMENT] != _header(begin, manifest):
        raise _Unusable("it is damaged or not complete")
    return msgspec.msgpack.decode(manifest, type=_Manifest)


def _protect(address: int, num_bytes: int) -> None:
    """From now on these pages can only be read. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), mmap.PROT_READ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _say(message: str) -> None:
    print(f"tern: {message}", file=sys.stderr, flush=True)
