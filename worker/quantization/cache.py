"""Cache: rounded weights on disk, so that the next start maps them instead of rounding again.

    --quantization-cache DIR
     └─ <key>.safetensors    of one rank of one model, rounded in one way; written beside and then renamed

The key is a hash of everything that decides the numbers: the model's fingerprint (config, tensors' headers,
dtype, scheme), size and time of modification of each file, the rank and how many there are, and VERSION. A
file that is truncated or malformed is written again; flipped bits are not noticed, as in the checkpoint
itself. Nothing is ever deleted here but what a killed writer left. A disk that is full costs the cache, not
the start.
"""

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import DTYPES, StoredTensor, TensorPart, read_header
from ..kernels.matmul import Matrix
from ..kernels.matrices import Kind, Matrices
from ..mapped_file import MappedFile
from ..parallel import Group
from .format import Cut, Format, Role
from .rounding import Rounded, Rounding
from .unquantized import Unquantized

VERSION = 3
"""Of what rounding computes and how parts are laid out."""
ENTRY_BYTES = 1024
"""Room in the header, which is written last, for the tensors of a part."""
PAGE = 4096
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Cache:
    """One file, either read from or written. Parts of matrices are stored by name."""

    def __init__(self, folder: Path, fingerprint: str, files: Collection[Path], group: Group) -> None:
        """Raises StartupError when the folder cannot be made."""
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
        parts = [VERSION, fingerprint, stamps, group.rank, group.size]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(f"--quantization-cache {str(folder)!r}: {error.strerror}") from None
        self.path = folder / f"{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]}.safetensors"
        self._stored: dict[str, dict[str, StoredTensor]] = {}
        self._map: MappedFile | None = None
        self._announced = 0
        self._writer: _Writer | None = None
        self._failed = False
        if self.path.exists():
            self._open()

    @property
    def hit(self) -> bool:
        return self._map is not None

    def announce(self) -> None:
        """A part will be put, or got."""
        self._announced += 1

    def get(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, as views of the file. Raises StartupError when they cannot be read."""
        assert self._map is not None
        try:
            found = self._stored[name].items()
            return {field: self._map.tensor(t.offset, t.shape, t.dtype) for field, t in found}
        except (KeyError, OSError) as error:
            raise StartupError(f"{self.path} cannot be used: {error}", hint="delete it") from None

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a part; with the last of those announced, the file appears. Failing is only reported."""
        if self._failed:
            return
        try:
            self._writer = self._writer or _Writer(self.path, ENTRY_BYTES * self._announced)
            for field, tensor in tensors.items():
                self._writer.append(f"{name}:{field}", tensor)
            self._announced -= 1
            if self._announced == 0:
                self._writer.finish()
        except OSError as error:
            self._failed = True
            _say(f"the quantization cache {self.path} is not written: {error.strerror}")
            if self._writer is not None:
                self._writer.abandon()

    def _open(self) -> None:
        try:
            for key, stored in read_header(self.path):
                name, _, field = key.rpartition(":")
                self._stored.setdefault(name, {})[field] = stored
            self._map = MappedFile(self.path)
        except (StartupError, OSError) as error:
            self._stored.clear()
            _say(f"the quantization cache {self.path} is made again: {error}")


class _Writer:
    """A safetensors file whose header is written last."""

    def __init__(self, path: Path, header_bytes: int) -> None:
        self._path = path
        self._start = -(-(8 + header_bytes) // PAGE) * PAGE
        prefix = f".writing-{path.stem}-"
        _remove_unfinished(path.parent, prefix)
        descriptor, self._name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
        self._file = os.fdopen(descriptor, "wb")
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # until this process closes the file, or dies
        self._file.seek(self._start)
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0

    def append(self, name: str, tensor: Tensor) -> None:
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        padding = -self._end % 64
        self._file.write(b"\0" * padding)
        begin = self._end + padding
        self._file.write(data)
        self._end = begin + len(data)
        self._entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, self._end],
        }

    def finish(self) -> None:
        header = msgspec.json.encode(self._entries)
        room = self._start - 8
        assert len(header) <= room
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + header.ljust(room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._name, self._path)

    def abandon(self) -> None:
        with suppress(OSError):
            os.unlink(self._name)
            self._file.close()


def _remove_unfinished(folder: Path, prefix: str) -> None:
    """What writers of the same file left that were killed: nobody holds its lock."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@dataclass(frozen=True)
class Cached:
    """A Format: a Rounded whose parts come from the cache, or go into it."""

    rounded: Rounded
    cache: Cache

    surplus: ClassVar[Sequence[str]] = ()
    combined: ClassVar[bool] = False

    @property
    def kind(self) -> Kind:
        return self.rounded.kind

    def blocks(self, cut: Cut) -> None:
        """None."""

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        self.cache.announce()
        return [part._replace(needed=not self.cache.hit) for part in self.rounded.parts(cut)]

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> Any:
        name = f"{cut.name} {list(cut.rows)} {list(cut.columns)}"
        if self.cache.hit:
            return self.rounded.restore(self.cache.get(name), cut)
        part = self.rounded.load(cut, tensors, dtype)
        values = {entry.name: getattr(part, entry.name) for entry in fields(part)}
        self.cache.put(name, {field: value for field, value in values.items() if isinstance(value, Tensor)})
        return part

    def join(
        self, parts: Sequence[Any], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return self.rounded.join(parts, cuts, bias, matrices)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        return self.rounded.num_bytes(cut, dtype)


@dataclass(frozen=True)
class CachedRounding:
    """Formats."""

    rounding: Rounding
    cache: Cache

    @property
    def name(self) -> str:
        return self.rounding.name

    def format_of(self, module: str, role: Role) -> Format[Any]:
        rounded = self.rounding.rounded(role)
        return Unquantized() if rounded is None else Cached(rounded, self.cache)


def _say(message: str) -> None:
    print(f"tern: {message}", file=sys.stderr, flush=True)
