"""NativeMatrices: weights of every kind in the order in which the kernels in C read them.

All but int4 are packed into panels (cpu/panels.h); int4's codes have their order already, and get scales and
zeros in blocks of as many rows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.library import Library
from .matmul import FP8Part, Int4Part, Int8Part, NF4Part
from .matrices import Kind
from .native_matrix import (
    FP8,
    INT4,
    INT8,
    NF4,
    TYPES,
    W8A16,
    Allocate,
    NativeMatrix,
    NativePart,
    NativeWeights,
    pack,
)


def in_own_memory(num_bytes: int) -> Tensor:
    """An Allocate."""
    return torch.empty(num_bytes, dtype=torch.uint8)


class NativeMatrices:
    """Matrices, see matrices.py."""

    dense_copies = True

    def __init__(self, kernels: Library, allocate: Allocate = in_own_memory) -> None:
        """`allocate`: where panels, which are nearly all of a model, are written to."""
        self._kernels = kernels
        self._allocate = allocate

    def check(self, kind: Kind) -> None:
        """All can be made."""

    def place(self, tensor: Tensor) -> Tensor:
        return tensor

    def dense(self, parts: Sequence[Tensor], bias: Tensor | None) -> NativeMatrix:
        rows = [NativePart(len(part), part) for part in parts]
        return self._packed(TYPES[parts[0].dtype], parts[0].shape[1], rows, bias)

    def int8(self, parts: Sequence[Int8Part], bias: Tensor | None, *, quantize_input: bool) -> NativeMatrix:
        rows = [
            NativePart(len(p.weight), p.weight, _floats(p.scales), scale_rows=1, scale_stride=1)
            for p in parts
        ]
        return self._packed(INT8 if quantize_input else W8A16, parts[0].weight.shape[1], rows, bias)

    def int4(
        self, parts: Sequence[Int4Part], bias: Tensor | None, *, columns: int, group: int
    ) -> NativeMatrix:
        short = all(part.scales.dtype == torch.bfloat16 for part in parts)
        scale_type = torch.bfloat16 if short else torch.float32
        rows = [
            NativePart(
                len(part.scales),
                part.packed,
                _by_block(part.scales.to(scale_type)),
                None if part.zeros is None else _by_block(part.zeros.float()),
            )
            for part in parts
        ]
        weights = NativeWeights(
            kind=INT4,
            n=sum(row.rows for row in rows),
            k=columns,
            parts=tuple(rows),
            bias=_floats(bias),
            group=group,
            scale_type=TYPES[scale_type],
        )
        return NativeMatrix(self._kernels, weights)

    def nf4(self, parts: Sequence[NF4Part], bias: Tensor | None, *, columns: int, group: int) -> NativeMatrix:
        rows = [
            NativePart(
                len(p.absmax), p.packed, _floats(p.absmax), scale_rows=1, scale_stride=p.absmax.shape[1]
            )
            for p in parts
        ]
        return self._packed(NF4, columns, rows, bias, group)

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None, *, quantize_input: bool) -> NativeMatrix:
        columns, k = parts[0].block[1], parts[0].weight.shape[1]
        assert all(part.block[1] == columns for part in parts)
        assert columns % 4 == 0 or columns >= k, columns
        rows = [
            NativePart(
                len(p.weight),
                p.weight,
                _floats(p.scales),
                scale_rows=p.block[0],
                scale_stride=p.scales.shape[1],
            )
            for p in parts
        ]
        return self._packed(FP8, k, rows, bias, columns)

    def _packed(
        self, kind: int, k: int, rows: Sequence[NativePart], bias: Tensor | None, group: int = 0
    ) -> NativeMatrix:
        weights = NativeWeights(
            kind=kind,
            n=sum(row.rows for row in rows),
            k=k,
            parts=tuple(rows),
            bias=_floats(bias),
            group=group or k,
        )
        return NativeMatrix(self._kernels, pack(self._kernels, weights, self._allocate))


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _by_block(of_groups: Tensor) -> Tensor:
    """[n, groups] → [blocks of 16 rows, groups, 16], as the kernels read it"""
    n, groups = of_groups.shape
    return F.pad(of_groups, (0, 0, 0, -n % 16)).view(-1, 16, groups).transpose(1, 2).contiguous()
