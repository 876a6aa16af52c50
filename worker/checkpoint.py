"""A checkpoint folder: config.json, end-of-sequence ids, safetensors. Knows no model and no layer.

Every length and offset in a file is checked before it is used. Data is mapped (mapped_file.py) or, on request
and where it lies at an odd place, read with pread: a truncated file is an error message, never a crash or
zeros. Pickles (.bin, .pt) are refused.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from protocol.errors import StartupError

from .mapped_file import MappedFile

MAX_HEADER_BYTES = 100 << 20
"""Of one safetensors file; the reference implementation has the same limit."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types of what is not quantized."""

Decoded = TypeVar("Decoded")

_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that decoding JSON raises."""


class StoredTensor(NamedTuple):
    """Where a tensor lies on disk."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """In bytes from the start of the file."""


class TensorPart(NamedTuple):
    """A tensor of a checkpoint, or the part of it that this rank needs."""

    name: str
    shape: tuple[int, ...]
    """Of the whole, as the checkpoint must have it; dimensions of 1 may be more or fewer there."""
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    """That it may be stored as."""
    kept: bool = False
    """Who asks keeps the tensor, which so may remain a view of the mapped file; otherwise it is whole."""
    needed: bool = True
    """Otherwise it must be there, but is not read: what it would become is in a cache."""

    def cut(self, whole: Tensor) -> Tensor:
        """The part, as a view."""
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            whole = whole.narrow(dim, start, size)
        return whole


class _Entry(msgspec.Struct):
    """One tensor in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    """model.safetensors.index.json"""

    weight_map: dict[str, str]


class _Eos(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


class Tensors:
    """Those of safetensors files, whose headers have been read; data is read when asked for."""

    def __init__(self, tensors: dict[str, StoredTensor], *, may_map: bool = True) -> None:
        self.tensors = tensors
        self.may_map = may_map
        self._maps: dict[Path, MappedFile] = {}

    def read(self, part: TensorPart) -> Tensor:
        """In its stored type. Never written to, as it may be a view of the mapped file.

        Raises StartupError when the file cannot be read, or has become shorter since its header was.
        """
        stored = self.tensors[part.name]
        shape = (*part.sizes[:1], *part.shape[1:])
        row_bytes = math.prod(part.shape[1:]) * stored.dtype.itemsize
        offset = stored.offset + (part.starts[0] if part.starts else 0) * row_bytes
        in_rows = part._replace(starts=(0, *part.starts[1:])[: len(shape)])
        try:
            if self.may_map and offset % stored.dtype.itemsize == 0:
                mapped = in_rows.cut(self._map(stored.path).tensor(offset, shape, stored.dtype))
                return mapped if part.kept else mapped.contiguous()
            rows = torch.empty(shape, dtype=stored.dtype)
            if not _fill(rows, stored.path, offset):
                raise StartupError(
                    f"{stored.path.name} became shorter while {part.name!r} was read",
                    hint="copy the checkpoint again, and start when the copy is complete",
                )
            return in_rows.cut(rows).contiguous()
        except OSError as error:
            raise _unreadable(stored.path.name, error) from None

    def let_go(self) -> None:
        """Most of what was read is not looked at again: what is mapped takes no memory until it is."""
        for mapped in self._maps.values():
            mapped.let_go()

    def _map(self, path: Path) -> MappedFile:
        if path not in self._maps:
            self._maps[path] = MappedFile(path)
        return self._maps[path]


class Checkpoint(Tensors):
    """Headers are read and checked at once."""

    def __init__(self, folder: Path, *, with_weights: bool = True, may_map: bool = True) -> None:
        """Raises StartupError. Without weights (`load_format=dummy`) only config.json must be there."""
        if not folder.is_dir():
            raise StartupError(
                f"the model {str(folder)!r} is not a folder", hint="give --model the folder of a checkpoint"
            )
        super().__init__(_read_headers(folder) if with_weights else {}, may_map=may_map)
        self.folder = folder

    def config(self, kind: type[Decoded]) -> Decoded:
        """config.json as a `kind`; unknown keys are left out."""
        return self._decode("config.json", kind)

    def eos_token_ids(self) -> tuple[int, ...]:
        """From generation_config.json if it names any, else from config.json."""
        names = ["generation_config.json", "config.json"]
        for name in names:
            if (self.folder / name).is_file():
                eos = self._decode(name, _Eos).eos_token_id
                if eos is not None:
                    return (eos,) if isinstance(eos, int) else tuple(eos)
        return ()

    def fingerprint(self, *extra: str) -> str:
        """Hash of config.json, the tensors' names, types and shapes, and `extra`; not of the data."""
        digest = hashlib.sha256()
        digest.update(msgspec.json.encode(self._decode("config.json", Any), order="deterministic"))
        for name, stored in sorted(self.tensors.items()):
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
        digest.update("\n".join(extra).encode())
        return digest.hexdigest()[:16]

    def stamps(self) -> list[tuple[str, int, int, int]]:
        """Of each file of weights, what changes when it does: name, bytes, time of modification, inode."""
        files = sorted({stored.path for stored in self.tensors.values()})
        found = [(path.name, path.stat()) for path in files]
        return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found]

    def _decode(self, name: str, kind: type[Decoded]) -> Decoded:
        path = self.folder / name
        try:
            return _decoded(path.read_bytes(), kind)
        except FileNotFoundError:
            raise StartupError(
                f"{name} is missing from {str(self.folder)!r}", hint="give --model the folder of a checkpoint"
            ) from None
        except OSError as error:
            raise _unreadable(name, error) from None
        except _MALFORMED as error:
            raise StartupError(f"{name} is malformed: {error}") from None


def _decoded(document: bytes, kind: type[Decoded]) -> Decoded:
    """JSON, and what Python writes beyond it: Infinity and NaN. Raises one of _MALFORMED."""
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        try:
            return msgspec.convert(json.loads(document), type=kind)
        except ValueError:
            raise error from None


def _read_headers(folder: Path) -> dict[str, StoredTensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _read_sharded(folder, index)
    single = folder / "model.safetensors"
    if single.is_file():
        return dict(read_header(single))
    pickles = sorted(p.name for suffix in ("bin", "pt", "pth") for p in folder.glob(f"*.{suffix}"))
    if pickles:
        raise StartupError(
            f"{pickles[0]} is a pickle, which can run code when it is read; Tern reads safetensors only",
            hint="convert the checkpoint: from_pretrained(...).save_pretrained(folder) writes safetensors",
        )
    raise StartupError(
        f"no model.safetensors in {str(folder)!r}", hint="finish the download, or use --load-format dummy"
    )


def _read_sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except OSError as error:
        raise _unreadable(index.name, error) from None
    except _MALFORMED as error:
        raise StartupError(f"{index.name} is malformed: {error}") from None
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise StartupError(f"{index.name} names {file!r}, which is outside of the checkpoint's folder")
        if not (folder / file).is_file():
            raise StartupError(f"{index.name} names {file!r}, which is missing", hint="finish the download")
        tensors.update(read_header(folder / file))
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise StartupError(f"{index.name} promises {absent[0]!r}, but no shard has it")
    return tensors


def read_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Of a safetensors file, checked. Raises StartupError.

    Layout: uint64 header length · JSON header · data. Offsets count from the start of the data.
    """
    try:
        header, file_bytes = _header_of(path)
    except OSError as error:
        raise _unreadable(path.name, error) from None
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except _MALFORMED as error:
        raise StartupError(f"the header of {path.name} is malformed: {error}") from None
    data_start = 8 + len(header)
    for name, entry in tensors.items():
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise StartupError(f"{name!r} in {path.name} has the unknown type {entry.dtype!r}")
        begin, end = entry.data_offsets
        needed = math.prod(entry.shape) * dtype.itemsize
        if min(entry.shape, default=0) < 0 or begin < 0 or end - begin != needed:
            raise StartupError(f"{name!r} in {path.name}: offsets {begin}–{end} do not fit {entry.shape}")
        if data_start + end > file_bytes:
            raise StartupError(
                f"{path.name} is truncated: {name!r} ends at byte {data_start + end} of {file_bytes}",
                hint="finish the download",
            )
        yield name, StoredTensor(path, dtype, entry.shape, data_start + begin)


def _fill(tensor: Tensor, path: Path, offset: int) -> bool:
    """Read the tensor's bytes; False when the file ends before they do."""
    buffer = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
    descriptor, done = os.open(path, os.O_RDONLY), 0
    try:
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done : done + (1 << 30)]], offset + done)
            if count == 0:
                return False
            done += count
    finally:
        os.close(descriptor)
    return True


def _header_of(path: Path) -> tuple[bytes, int]:
    """(JSON, bytes of the whole file)"""
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise StartupError(
                f"{path.name} is truncated or not safetensors: "
                f"its header claims {header_bytes} bytes of a {file_bytes}-byte file"
            )
        header = file.read(header_bytes)
    if len(header) < header_bytes:
        raise StartupError(f"{path.name} became shorter while its header was read")
    return header, file_bytes


def _unreadable(name: str, error: OSError) -> StartupError:
    return StartupError(f"{name} cannot be read: {error.strerror}", hint="check its permissions and its disk")
