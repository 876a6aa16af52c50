"""Grouped: integer weights of 4 or 8 bits whose groups of columns share a scale and a zero point.

    weight[i, j] = (code[i, j] - zero[i, g]) · scale[i, g]        g: the group of column j

The ways of storing them (compressed-tensors, GPTQ, AWQ) say what to read and how to unpack it; the rest is
here. Four bits are an Int4Matrix. Eight bits are two: code = 16 · high + low, so that they are multiplied by
the same kernels. Both quantize x to eight bits per row and group, see kernels/matmul.py.

Groups need not be of neighbouring columns (GPTQ's desc_act): then columns are sorted by group on loading, and
x is put in the same order before each product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import TensorPart
from ..kernels.combined_matrix import ReorderedMatrix, StackedMatrix, SumMatrix
from ..kernels.matmul import INT4_ZERO, Int4Part, Matrix, pack_int4
from ..kernels.matrices import Kind, Matrices
from .format import Cut

GROUP_UNIT = 32
"""Groups are multiples of it, or whole rows."""


class Codes(NamedTuple):
    """A part, unpacked."""

    codes: Tensor
    """uint8[n, K]"""
    scales: Tensor
    """[n, groups], of any floating type"""
    zeros: Tensor | None
    """[n, groups]; None: half of the range, 8 or 128"""
    groups: Tensor | None = None
    """int[K]: the group of each column; None: neighbours"""


class Storage(Protocol):
    """How the codes are stored. Frozen, compared by value."""

    @property
    def bits(self) -> int:
        """4 or 8"""

    @property
    def group(self) -> int | None:
        """Columns that share a scale; None: all of a row."""

    @property
    def has_zeros(self) -> bool: ...

    @property
    def scattered(self) -> bool:
        """Groups are of columns that are no neighbours."""

    @property
    def surplus(self) -> Sequence[str]: ...

    def parts(self, cut: Cut) -> Sequence[TensorPart]: ...

    def unpack(self, cut: Cut, tensors: Sequence[Tensor]) -> Codes: ...


class GroupedPart(NamedTuple):
    nibbles: tuple[Int4Part, ...]
    """The low four bits, and the high ones if there are any."""
    order: Tensor | None


@dataclass(frozen=True)
class Grouped:
    """A Format."""

    storage: Storage

    kind: ClassVar[Kind] = "int4"

    @property
    def surplus(self) -> Sequence[str]:
        return self.storage.surplus

    @property
    def combined(self) -> bool:
        return self.storage.bits == 8 or self.storage.scattered

    def blocks(self, cut: Cut) -> None:
        """None."""

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        return self.storage.parts(cut)

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> GroupedPart:
        codes, scales, zeros, groups = self.storage.unpack(cut, tensors)
        scales = scales.float().contiguous()
        order = None if groups is None else self._order(cut, groups)
        if order is not None:
            codes = codes.index_select(1, order)
        if self.storage.bits == 4:
            return GroupedPart((_part(codes, scales, zeros),), order)
        whole = torch.full_like(scales, 128) if zeros is None else zeros
        high = _part(codes >> 4, scales * 16, (whole / 16).floor())
        return GroupedPart((_part(codes & 15, scales, whole % 16), high), order)

    def join(
        self, parts: Sequence[GroupedPart], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        order = parts[0].order
        if any(not _same(part.order, order) for part in parts):
            biases = (
                [None] * len(cuts) if bias is None else torch.split(bias, [cut.rows.length for cut in cuts])
            )
            return StackedMatrix(
                [self.join([p], [c], b, matrices) for p, c, b in zip(parts, cuts, biases, strict=True)]
            )
        columns = cuts[0].columns.length
        group = self.storage.group or columns
        low, *high = [
            matrices.int4(nibbles, None if i else bias, columns=columns, group=group)
            for i, nibbles in enumerate(zip(*(part.nibbles for part in parts), strict=True))
        ]
        matrix: Matrix = SumMatrix(low, high[0]) if high else low
        return matrix if order is None else ReorderedMatrix(matrix, matrices.place(order))

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        rows, columns = cut.sizes
        of_groups = 4 * rows * -(-columns // (self.storage.group or columns))
        nibbles = rows * 32 * -(-columns // 64) + of_groups * (1 + self.storage.has_zeros)
        return nibbles * self.storage.bits // 4

    def _order(self, cut: Cut, groups: Tensor) -> Tensor | None:
        """int64[K] that sorts columns by group. Raises StartupError unless groups are full."""
        columns = len(groups)
        group = self.storage.group or columns
        neighbours = torch.arange(columns) // group
        order = groups.argsort(stable=True)
        if not torch.equal(groups[order].long(), neighbours):
            raise StartupError(
                f"{cut.name + '.g_idx'!r} does not put {group} columns into each group",
                hint="the checkpoint is damaged, or its group_size is not what it says",
            )
        return None if torch.equal(groups.long(), neighbours) else order


def check_group(group: int, bits: int, what: str) -> int | None:
    """The group_size of a configuration; -1 is a whole row. Raises StartupError."""
    if bits not in (4, 8):
        raise StartupError(f"{what} of {bits} bits are not supported; Tern reads those of 4 and 8 bits")
    if group == -1:
        return None
    if group < 1 or group % GROUP_UNIT:
        raise StartupError(
            f"{what} with group_size {group} are not supported; it must be -1 or a multiple of {GROUP_UNIT}"
        )
    return group


def _part(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Int4Part:
    if zeros is not None:
        zeros = None if bool((zeros == INT4_ZERO).all()) else zeros.float().contiguous()
    return Int4Part(pack_int4(codes), scales, zeros)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)
