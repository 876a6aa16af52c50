"""Matrices: what a device makes of a checkpoint's parts. Formats say what the parts are, layers only
multiply.

    Weight ─ Format.join(parts, matrices) ─▶ matrices.int8(parts, …) ─▶ a Matrix

The CPU's are native_matrices.py, or those below; a GPU's are triton/matrices.py.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from .matmul import (
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

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        """`quantize_input`: x may be rounded to FP8, too, where that is faster."""


class TorchMatrices:
    """Of the CPU, where there are no kernels in C."""

    dense_copies = False

    def check(self, kind: Kind) -> None:
        """All can be made."""

    def place(self, tensor: Tensor) -> Tensor:
        return tensor

    def dense(self, parts: Sequence[Tensor], bias: Tensor | None) -> Matrix:
        return PackedMatrix(parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts)), bias)

    def int8(self, parts: Sequence[Int8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        return Int8Matrix(parts, bias, quantize_input=quantize_input)

    def int4(self, parts: Sequence[Int4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        return Int4Matrix(parts, bias, columns=columns, group=group)

    def nf4(self, parts: Sequence[NF4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        return NF4Matrix(parts, bias, columns=columns, group=group)

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        return FP8Matrix(parts, bias)
