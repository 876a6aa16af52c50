"""Matrices: what a device makes of a checkpoint's parts. Formats say what the parts are, layers only
multiply.

    Weight ─ Format.join(parts, matrices) ─▶ matrices.int8(parts, …) ─▶ a Matrix

HostMatrices are the CPU's; those of a GPU are triton/matrices.py.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from .cpu.library import Library
from .matmul import (
    DenseMatrix,
    FP8Matrix,
    FP8Part,
    Int4Matrix,
    Int4Part,
    Int8Matrix,
    Int8Part,
    Matrix,
    NF4Matrix,
    NF4Part,
)
from .packed_matrix import PackedMatrix

Kind = Literal["dense", "int8", "int4", "nf4", "fp8"]


class Matrices(Protocol):
    """All parts [n, K] of one matrix, one under the other; its bias [N], if there is one."""

    dense_copies: bool
    """`dense` holds weights in an order of its own, and keeps no part."""

    def check(self, kind: Kind) -> None:
        """Raises StartupError if such matrices cannot be made here."""

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor where it is computed with. `dense` of it alone shares its memory, or copies."""

    def dense(self, parts: Sequence[Tensor], bias: Tensor | None) -> Matrix: ...

    def int8(self, parts: Sequence[Int8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix: ...

    def int4(self, parts: Sequence[Int4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix: ...

    def nf4(self, parts: Sequence[NF4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix: ...

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None) -> Matrix: ...


class HostMatrices:
    """Matrices of the CPU."""

    def __init__(self, kernels: Library | None) -> None:
        self._kernels = kernels
        self.dense_copies = kernels is not None

    def check(self, kind: Kind) -> None:
        """All can be made."""

    def place(self, tensor: Tensor) -> Tensor:
        return tensor

    def dense(self, parts: Sequence[Tensor], bias: Tensor | None) -> Matrix:
        if self._kernels is not None:
            return DenseMatrix(parts, bias=bias, kernels=self._kernels)
        return PackedMatrix(parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts)), bias)

    def int8(self, parts: Sequence[Int8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        return Int8Matrix(parts, quantize_input=quantize_input, bias=bias, kernels=self._kernels)

    def int4(self, parts: Sequence[Int4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        return Int4Matrix(parts, columns, group, bias=bias, kernels=self._kernels)

    def nf4(self, parts: Sequence[NF4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        return NF4Matrix(parts, columns, group, bias=bias, kernels=self._kernels)

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None) -> Matrix:
        return FP8Matrix(parts, bias=bias, kernels=self._kernels)
