"""Tiles of products as they were fastest on a GPU: a data file per GPU, by its name. Knows no kernel.

    tuned/nvidia-h200.json    {"gpu": "NVIDIA H200", "versions": {…}, "products": [
                                {"kind": "bf16 × int8", "rows": 16, "n": 28672, "k": 4096,
                                 "tiles": {"m": 16, "n": 64, "k": 128, "num_warps": 4, "num_stages": 4}}, …]}

Written by `scripts/gpu_check tune`, read once when the first product is multiplied; nothing is tried out
while serving. Where there is no file, or no entry, the rules in the kernels' files decide. Numbers of rows
are told apart by class only, so that a step's size does not change the tiles within it.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from msgspec import Struct

FOLDER = Path(__file__).parent / "tuned"
ROWS = (16, 64)
"""Classes of few rows: at most so many."""
MANY = 1 << 20
"""The class of more rows."""
SHORT = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int8: "int8",
    torch.float8_e4m3fn: "fp8",
    torch.uint8: "int4",
}


class Tiles(NamedTuple):
    """Rows, columns and inner columns of a program's products, and how it runs."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


class Product(NamedTuple):
    """x [rows, k] times a weight [n, k]."""

    kind: str
    """Types of x and of the stored weight."""
    rows: int
    """The class."""
    n: int
    k: int


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    rows: int
    n: int
    k: int
    tiles: dict[str, int]

    def __post_init__(self) -> None:
        found = Tiles(**self.tiles)
        if any(size < 16 or size & (size - 1) for size in found[:3]):
            raise ValueError(f"tiles are powers of two from 16 on, not {found[:3]}")
        if found.num_warps not in (1, 2, 4, 8, 16) or not 1 <= found.num_stages <= 8:
            raise ValueError(f"{found.num_warps} warps, {found.num_stages} stages")

    @property
    def product(self) -> Product:
        return Product(self.kind, self.rows, self.n, self.k)


class Tuned(Struct, frozen=True, forbid_unknown_fields=True):
    """A file."""

    gpu: str
    versions: dict[str, str]
    """Of what it was measured with."""
    products: tuple[Entry, ...]


def product(x: torch.Tensor, weight_dtype: torch.dtype, rows: int, n: int) -> Product:
    """What a wrapper is about to multiply; `rows` may be others than those of x."""
    row_class = next((most for most in ROWS if rows <= most), MANY)
    return Product(f"{SHORT[x.dtype]} × {SHORT[weight_dtype]}", row_class, n, x.shape[1])


def tiles(device: torch.device, wanted: Product) -> Tiles | None:
    """Those that were fastest on this GPU; None: the rule decides. Raises ValueError for a broken file."""
    return read(_gpu(device)).get(wanted)


@functools.cache
def read(gpu: str) -> Mapping[Product, Tiles]:
    """All that is known of a GPU, by its name."""
    path = file_of(gpu)
    if not gpu or not path.is_file():
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Tuned)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: {error}; remove it, or write it anew with scripts/gpu_check tune"
        ) from error
    return {entry.product: Tiles(**entry.tiles) for entry in found.products}


def file_of(gpu: str, folder: Path | None = None) -> Path:
    return (folder or FOLDER) / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def write(tuned: Tuned, folder: Path | None = None) -> Path:
    """The file of its GPU, in place of any before; `folder`: not the one that is read. Raises OSError."""
    path = file_of(tuned.gpu, folder)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(tuned), indent=1) + b"\n")
    read.cache_clear()
    return path


@functools.cache
def _gpu(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else ""
