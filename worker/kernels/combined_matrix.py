"""Matrices made of matrices, for what checkpoints mix. Each is a Matrix, see kernels/matmul.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .matmul import Matrix


class StackedMatrix:
    """One under the other: y = x [A; B; …]ᵀ"""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.matrices = list(matrices)
        self.shape = sum(matrix.shape[0] for matrix in matrices), matrices[0].shape[1]

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        y = torch.cat([matrix.multiply(x, None, out_dtype) for matrix in self.matrices], -1)
        return y if add is None else y.add_(add)


class SumMatrix:
    """y = x (A + B)ᵀ, summed in float32. Biases may be in A or B."""

    def __init__(self, a: Matrix, b: Matrix) -> None:
        self.a, self.b = a, b
        self.shape = a.shape

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        y = self.b.multiply(x, self.a.multiply(x, None, torch.float32), torch.float32)
        if add is not None:
            y += add
        return y.to(out_dtype or x.dtype)


class ReorderedMatrix:
    """A matrix whose columns stand in another order than those of x: y = x[:, order] Aᵀ"""

    def __init__(self, matrix: Matrix, order: Tensor) -> None:
        """`order`: int64[K]"""
        self.matrix, self.order = matrix, order
        self.shape = matrix.shape

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.matrix.multiply(x.index_select(1, self.order), add, out_dtype)
