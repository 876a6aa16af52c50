"""Weights as they are, which may be views of the mapped checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checkpoint import TensorPart
from ..kernels.matmul import Matrix
from ..kernels.matrices import Kind, Matrices
from .format import Cut, Format, Role


@dataclass(frozen=True)
class Unquantized:
    """A Format whose parts are tensors [rows, columns]; and the Formats of a checkpoint that has no other."""

    name: ClassVar[str] = "none"
    kind: ClassVar[Kind] = "dense"
    surplus: ClassVar[Sequence[str]] = ()
    combined: ClassVar[bool] = False

    def format_of(self, module: str, role: Role) -> Format[Any]:
        return self

    def blocks(self, cut: Cut) -> None:
        """None."""

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        dims = (cut.columns, cut.rows) if cut.transposed else (cut.rows, cut.columns)
        return [cut.tensor("weight", *dims, kept=not cut.transposed)]

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        (weight,) = tensors
        return (weight.t().contiguous() if cut.transposed else weight).to(dtype)

    def join(
        self, parts: Sequence[Tensor], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return matrices.dense(parts, bias)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        rows, columns = cut.sizes
        return rows * columns * dtype.itemsize
