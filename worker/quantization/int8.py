"""Int8: one scale per row, symmetric. weight[i, j] = code[i, j] · scale[i]"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checkpoint import TensorPart
from ..kernels.matmul import Int8Part, Matrix
from ..kernels.matrices import Kind, Matrices
from ..parallel import whole
from .format import Cut


@dataclass(frozen=True)
class Int8:
    """A Format of tensors `weight` int8[N, K], which may be views of the mapped file, and `weight_scale`."""

    quantize_input: bool
    per_row: bool = True
    """Otherwise one scale for all."""

    kind: ClassVar[Kind] = "int8"
    surplus: ClassVar[Sequence[str]] = ()
    combined: ClassVar[bool] = False

    def blocks(self, cut: Cut) -> None:
        """None."""

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        scales = (cut.rows, whole(1)) if self.per_row else (whole(1),)
        return [
            cut.tensor("weight", cut.rows, cut.columns, dtypes=(torch.int8,), kept=True),
            cut.tensor("weight_scale", *scales),
        ]

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> Int8Part:
        weight, scales = tensors
        return Int8Part(weight, scales.float().flatten().expand(len(weight)).contiguous())

    def join(
        self, parts: Sequence[Int8Part], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return matrices.int8(parts, bias, quantize_input=self.quantize_input)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        rows, columns = cut.sizes
        return rows * (columns + 4)
