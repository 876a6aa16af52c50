"""Weights rounded while they are loaded: `--quantization`. Bits a weight, scales included:

    int8   8      one scale per row, max |w| / 127
    fp8    8      e4m3, one scale per row, max |w| / 448
    int4   4 + ½  codes -8 … 7; a scale (bfloat16) per 32 columns, searched for the least squared error;
                  with a scale per 64 or 128 columns 4 + ¼ and 4 + ⅛
    nf4    4 + ½  quantiles of a normal distribution (Dettmers et al., 2023), max |w| of 64 columns

Each rank rounds the part that it holds, a piece of it at a time, where it was read to: on the CPU, or where
random weights were drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import TensorPart
from ..kernels.matmul import (
    NF4,
    FP8Part,
    Int4Part,
    Int8Part,
    Matrix,
    NF4Part,
    pack_int4,
    pack_nf4,
)
from ..kernels.matrices import Kind as MatrixKind
from ..kernels.matrices import Matrices
from .format import Cut, Format, Kind, Role
from .fp8 import FP8
from .int8 import Int8
from .unquantized import Unquantized

Scheme = Literal["int8", "fp8", "int4", "nf4"]

INT4_GROUP = 32
"""Unless --quantization-group says otherwise."""
NF4_GROUP = 64
FP8_MAX = 448.0
SMALLEST = 1e-30
"""Of scales, so that a row of zeros divides by something."""
PIECE = 1 << 18
"""Weights that are rounded at once: temporaries stay small."""
LARGE_PIECE = 1 << 24
"""The same on a GPU, where each operation is launched."""
PLACES = (-8.0, -7.5, -7.0, -6.5, -6.0, -5.5, 7.0, 6.5)
"""Codes at which a group's weight of largest magnitude is tried, in the search for its int4 scale."""


@dataclass(frozen=True)
class Rounded:
    """A Format: an unquantized matrix becomes what `target` multiplies."""

    target: Kind[Any]
    round: Callable[[Tensor], Any]
    """[rows, columns] of any floating type → a part of the target's"""
    restore: Callable[[Mapping[str, Tensor], Cut], Any]
    """A part from its tensors by name"""

    surplus: ClassVar[Sequence[str]] = ()
    combined: ClassVar[bool] = False

    @property
    def kind(self) -> MatrixKind:
        return self.target.kind

    def blocks(self, cut: Cut) -> None:
        """None."""

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        return [part._replace(kept=False) for part in Unquantized().parts(cut)]

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> Any:
        (weight,) = tensors
        return self.round(weight.t() if cut.transposed else weight)

    def join(
        self, parts: Sequence[Any], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return self.target.join(parts, cuts, bias, matrices)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        return self.target.num_bytes(cut, dtype)


@dataclass(frozen=True)
class Rounding:
    """Formats of an unquantized checkpoint. Routers stay as they are; heads are rounded to 8 bits or not."""

    scheme: Scheme
    head: bool = True
    group: int = INT4_GROUP
    """Columns that share a scale, of int4."""

    @property
    def name(self) -> str:
        groups = f", groups of {self.group}" if self.scheme == "int4" and self.group != INT4_GROUP else ""
        return f"{self.scheme}{groups}" if self.head else f"{self.scheme}{groups}, head as it is"

    def format_of(self, module: str, role: Role) -> Format[Any]:
        return self.rounded(role) or Unquantized()

    def rounded(self, role: Role) -> Rounded | None:
        """None: it stays as it is."""
        if role == "router" or (role != "linear" and not self.head):
            return None
        if role != "linear":
            return ROUNDED["fp8" if self.scheme == "fp8" else "int8"]
        return rounded_int4(self.group) if self.scheme == "int4" else ROUNDED[self.scheme]


def round_int8(weight: Tensor) -> Int8Part:
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    for rows, piece in _pieces(weight):
        scales[rows] = (piece.abs().amax(1) / 127).clamp_min_(SMALLEST)
        codes[rows] = (piece / scales[rows, None]).round_().to(torch.int8)
    return Int8Part(codes, scales)


def round_fp8(weight: Tensor) -> FP8Part:
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(len(weight), 1, device=weight.device)
    for rows, piece in _pieces(weight):
        scales[rows] = (piece.abs().amax(1, keepdim=True) / FP8_MAX).clamp_min_(SMALLEST)
        codes[rows] = (piece / scales[rows]).to(torch.float8_e4m3fn)
    return FP8Part(codes, scales, (1, weight.shape[1]))


def round_int4(weight: Tensor, group: int = INT4_GROUP) -> Int4Part:
    """Of the scales that put a group's largest weight on one of PLACES, each improved once by least squares,
    the one with the least squared error."""
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    num_groups = -(-weight.shape[1] // group)
    scales = torch.empty(len(weight), num_groups, dtype=torch.bfloat16, device=weight.device)
    for rows, piece in _pieces(weight):
        groups = _groups(piece, group)
        largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
        best, best_error = torch.ones_like(largest), torch.full_like(largest, torch.inf)
        for place in PLACES:
            scale = _least_squares(groups, _nonzero(largest / place))
            error = (_codes(groups, scale).mul_(scale) - groups).square_().sum(2, keepdim=True)
            better = error < best_error
            best = torch.where(better, scale, best)
            best_error = torch.where(better, error, best_error)
        scales[rows] = best.squeeze(2).bfloat16()
        best = scales[rows].float().unsqueeze(2)  # codes are of the scale that is kept
        codes[rows] = (_codes(groups, best) + 8).to(torch.uint8).flatten(1)[:, : weight.shape[1]]
    return Int4Part(pack_int4(codes), scales, None)


def round_nf4(weight: Tensor) -> NF4Part:
    between = torch.tensor([(low + high) / 2 for low, high in pairwise(NF4)], device=weight.device)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(len(weight), -(-weight.shape[1] // NF4_GROUP), device=weight.device)
    for rows, piece in _pieces(weight):
        groups = _groups(piece, NF4_GROUP)
        largest = groups.abs().amax(2, keepdim=True)
        absmax[rows] = largest.squeeze(2)
        normal = groups / largest.clamp_min(SMALLEST)
        codes[rows] = torch.bucketize(normal, between).to(torch.uint8).flatten(1)[:, : weight.shape[1]]
    return NF4Part(pack_nf4(codes), absmax)


@dataclass(frozen=True)
class Int4:
    """A Kind."""

    group: int
    kind: ClassVar[MatrixKind] = "int4"

    def join(
        self, parts: Sequence[Int4Part], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return matrices.int4(parts, bias, columns=cuts[0].columns.length, group=self.group)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        return _grouped_bytes(cut, self.group, scale_bytes=2)


@dataclass(frozen=True)
class NF4Kind:
    """A Kind: groups of NF4_GROUP."""

    kind: ClassVar[MatrixKind] = "nf4"

    def join(
        self, parts: Sequence[NF4Part], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return matrices.nf4(parts, bias, columns=cuts[0].columns.length, group=NF4_GROUP)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        return _grouped_bytes(cut, NF4_GROUP, scale_bytes=4)


@cache
def rounded_int4(group: int) -> Rounded:
    """One whose codes are those of `round_int4`, in groups of so many columns."""

    def round_in_groups(weight: Tensor) -> Int4Part:
        return round_int4(weight, group)

    return Rounded(Int4(group), round_in_groups, lambda found, _: Int4Part(**found, zeros=None))


ROUNDED: Mapping[Scheme, Rounded] = {
    "int8": Rounded(Int8(quantize_input=True), round_int8, lambda found, _: Int8Part(**found)),
    "fp8": Rounded(
        FP8("", "channel"), round_fp8, lambda found, cut: FP8Part(**found, block=(1, cut.columns.length))
    ),
    "nf4": Rounded(NF4Kind(), round_nf4, lambda found, _: NF4Part(**found)),
}


def _pieces(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, float32[rows, columns])"""
    step = max((PIECE if weight.device.type == "cpu" else LARGE_PIECE) // weight.shape[1], 1)
    for start in range(0, len(weight), step):
        rows = slice(start, min(start + step, len(weight)))
        yield rows, weight[rows].float().contiguous()


def _groups(piece: Tensor, group: int) -> Tensor:
    """[rows, columns] → [rows, groups, group], filled up with zeros"""
    return F.pad(piece, (0, -piece.shape[1] % group)).view(len(piece), -1, group)


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale).round_().clamp_(-8, 7)


def _least_squares(groups: Tensor, scale: Tensor) -> Tensor:
    """The best scale for the codes that `scale` gives."""
    codes = _codes(groups, scale)
    return _nonzero((groups * codes).sum(2, keepdim=True) / codes.square().sum(2, keepdim=True).clamp_min_(1))


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale.abs() < SMALLEST, SMALLEST, scale)


def _grouped_bytes(cut: Cut, group: int, *, scale_bytes: int) -> int:
    rows, columns = cut.sizes
    return rows * (32 * -(-columns // 64) + scale_bytes * -(-columns // group))
