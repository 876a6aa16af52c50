"""Linear layers split over ranks by output (column) or by input (row). Weights belong to their method.

A column layer needs no communication and leaves each rank with its part of the output; the row layer
that follows takes that part as input and sums over the ranks: one all-reduce per pair.
"""

import torch
from torch import Tensor

from ..parallel import Group, Span, whole
from ..quantization.method import Rows
from ..quantization.unquantized import Unquantized
from ..weights import Scope


class ColumnLinear:
    """Several of the checkpoint's matrices as one: y = x [W1; W2; …]ᵀ, this rank's rows of each."""

    def __init__(
        self, scope: Scope, in_features: int, merged: Rows, *, bias: bool = False, transposed: bool = False
    ) -> None:
        self.method = Unquantized()
        self.method.create(scope, merged, whole(in_features), bias=bias, transposed=transposed)

    def __call__(self, x: Tensor) -> Tensor:
        return self.method.multiply(x)


class RowLinear:
    """y = x Wᵀ, plus the residual if given, where each rank holds some columns of W and of x."""

    def __init__(
        self,
        scope: Scope,
        name: str,
        columns: Span,
        out_features: int,
        group: Group,
        *,
        bias: bool = False,
        transposed: bool = False,
    ) -> None:
        self.group = group
        self.method = Unquantized()
        rows = {name: [whole(out_features)]}
        self.method.create(scope, rows, columns, bias=False, transposed=transposed)
        self.bias: Tensor | None = None
        if bias:  # added once, after the sum
            self.bias = torch.empty(out_features, dtype=scope.dtype)
            (scope / name).want("bias", (out_features,), self.bias)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.method.multiply(x, residual if self.group.rank == 0 else None)
        y = self.group.all_reduce(y)
        return y if self.bias is None else y + self.bias
