"""Linear layers split over ranks by output (column) or by input (row). How a weight is stored and multiplied
is its format's business.

A column layer needs no communication and leaves each rank with its part of the output; the row layer
that follows takes that part as input and sums over the ranks: one all-reduce per pair.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..kernels.activation import Activation
from ..kernels.combined_matrix import StackedMatrix
from ..kernels.matmul import Matrix
from ..parallel import Group, Span, whole
from ..quantization.format import Cut, Format, Role
from ..weights import Scope
from .norm import Norm

Rows = Mapping[str, Sequence[Span]]
"""The checkpoint's matrices that are stacked into one, in order, and the spans of rows that each consists
of: `{"q_proj": [q], "k_proj": [k]}`, or `{"qkv_proj": [q, k, v]}` where the checkpoint has them fused."""


class Weight:
    """This rank's rows and columns of several of the checkpoint's matrices, as one. Empty until loaded."""

    matrix: Matrix

    def __init__(
        self,
        rows: Sequence[tuple[Scope, Sequence[Span]]],
        columns: Span,
        *,
        bias: bool = False,
        transposed: bool = False,
        role: Role = "linear",
    ) -> None:
        """`rows`: the place of each matrix, and its spans."""
        self.cuts: list[Cut] = []
        """Of the checkpoint's matrices, below one another."""
        self.formats: list[Format[Any]] = []
        """Of each."""
        biases = []
        for place, spans in rows:
            form = place.formats.format_of(place.name, role)
            total, above = sum(span.total for span in spans), 0
            for span in spans:
                part = Span(total, above + span.start, span.length)
                self.cuts.append(Cut(place.name, part, columns, transposed))
                self.formats.append(form)
                biases.append(self.cuts[-1].tensor("bias", part))
                above += span.total
            for name in form.surplus:
                place.allow(name)
        place = rows[0][0]
        self._dtype, self._matrices, self._image = place.dtype, place.matrices, place.image
        for form in self.formats:
            self._matrices.check(form.kind)
        wanted = [list(f.parts(cut)) for f, cut in zip(self.formats, self.cuts, strict=True)]
        self._counts = [len(parts) for parts in wanted]
        pairs = zip(self.formats, self.cuts, strict=True)
        num_bytes = sum(f.num_bytes(cut, self._dtype) for f, cut in pairs)
        if bias:
            wanted.append(biases)
            num_bytes += sum(cut.rows.length for cut in self.cuts) * self._dtype.itemsize
        if self._image is not None and self._image.found:
            wanted = [[part._replace(needed=False) for part in parts] for parts in wanted]
        copied = self._matrices.dense_copies and all(form.kind == "dense" for form in self.formats)
        place.request([part for parts in wanted for part in parts], self._take, num_bytes, copied=copied)
        if role == "linear":
            place.changeable(self)

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        """[n, columns] → [n, rows], plus the bias if there is one, plus `add` if given."""
        return self.matrix.multiply(x, add, out_dtype)

    def take(self) -> Matrix:
        """Its matrix, which it holds no longer."""
        matrix = self.matrix
        del self.matrix
        return matrix

    def _take(self, tensors: Sequence[Tensor]) -> None:
        if self._image is None:
            self.matrix = self._joined(tensors)
        elif self._image.found:
            self.matrix = self._image.matrix(self._name)
        else:
            self.matrix = self._image.put(self._name, self._joined(tensors))

    @property
    def _name(self) -> str:
        """Of all its matrices, in the image."""
        return " ".join(dict.fromkeys(cut.name for cut in self.cuts))

    def _joined(self, tensors: Sequence[Tensor]) -> Matrix:
        left = iter(tensors)
        loaded = []
        for form, cut, count in zip(self.formats, self.cuts, self._counts, strict=True):
            loaded.append((form, cut, form.load(cut, [next(left) for _ in range(count)], self._dtype)))
        biases = [bias.to(self._dtype) for bias in left]
        bias = torch.cat(biases) if biases else None
        matrices, above = [], 0
        for form, same in groupby(loaded, key=lambda entry: entry[0]):
            _, cuts, parts = zip(*same, strict=True)
            below = above + sum(cut.rows.length for cut in cuts)
            its_bias = None if bias is None else bias[above:below]
            matrices.append(form.join(parts, cuts, its_bias, self._matrices))
            above = below
        return matrices[0] if len(matrices) == 1 else StackedMatrix(matrices)


class ColumnLinear:
    """Several of the checkpoint's matrices as one: y = x [W1; W2; …]ᵀ, this rank's rows of each."""

    def __init__(
        self,
        scope: Scope,
        in_features: int,
        merged: Rows,
        *,
        bias: bool = False,
        transposed: bool = False,
        role: Role = "linear",
    ) -> None:
        rows = [(scope / name, spans) for name, spans in merged.items()]
        self.weight = Weight(rows, whole(in_features), bias=bias, transposed=transposed, role=role)
        self.on_device = None if scope.device is None else scope.device.project

    def __call__(self, x: Tensor, norm: Norm | None = None, activation: Activation | None = None) -> Tensor:
        """activation(W norm(x) + bias)"""
        if self.on_device is not None:
            fused = None if norm is None else norm.fused
            return self.on_device(x, self.weight.matrix, fused, activation)
        y = self.weight.multiply(x if norm is None else norm(x))
        return y if activation is None else activation(y)


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
        place = scope / name
        self.weight = Weight([(place, [whole(out_features)])], columns, transposed=transposed)
        self.bias: Tensor | None = None
        if bias:  # added once, after the sum
            self.bias = torch.empty(out_features, dtype=scope.dtype)
            place.want("bias", (out_features,), self.bias)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.weight.multiply(x, residual if self.group.rank == 0 else None)
        y = self.group.all_reduce(y)
        return y if self.bias is None else y + self.bias
