"""Matrices whose products are Triton's: what a checkpoint's weights become on a GPU.

    dense    16 or 32 bits; products of many rows by cuBLAS, unless a row must not depend on their number
    int8     W8A8: activations rounded row by row; or W8A16
    int4     W4A16, groups of 32 columns or more
    fp8      W8A16, scales per row or per block of 128 × 128; from compute capability 8.9 on. Many rows are
             rounded, too, if the checkpoint allows it: products of 8 bits take half the time

One row alone is multiplied by gemv.py or int4_gemv.py: in one launch with what stands around, without tensor
cores, which a row cannot fill, and without rounding it to 8 bits; a rule that was not measured yet. nf4 has
no kernel. Where a row's numbers must not depend on its company, all numbers of rows take the same tiles, and
x is rounded for none of them to fp8.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from protocol.errors import StartupError

from ..combined_matrix import StackedMatrix
from ..matmul import FP8Part, Int4Part, Int8Part, Matrix, NF4Part, unpack_int4
from ..matrices import Kind
from . import int4_matmul
from .gemv import RowNorm, gemv
from .int4_gemv import int4_gemv
from .int4_matmul import int4_matmul as multiply_int4
from .matmul import BLOCK, matmul
from .quantize_rows import quantize_rows

MANY_ROWS = 64
"""Above it products take longer than reading their matrix. cuBLAS multiplies dense weights then, close to the
device's limit."""
FP8_CAPABILITY = (8, 9)
MOST_TILES = 1 << 14
"""Of a product in parts. Larger ones, of prompts with `--batch-invariant on`, count for themselves."""


def fp8_lacks(device: torch.device) -> str:
    """The device's compute capability, if that is too old for fp8."""
    if device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}" if (major, minor) < FP8_CAPABILITY else ""


class Way(NamedTuple):
    """How all matrices of a device multiply."""

    invariant: bool
    pdl: bool
    """Launches for one row overlap, see dependent_launch.py."""
    finished: Tensor
    """int32: counts parts of products, see matmul.py; one after the other uses it"""


class TritonMatrices:
    """Matrices, see ../matrices.py."""

    def __init__(self, device: torch.device, *, invariant: bool, pdl: bool = False) -> None:
        self.device, self.invariant = device, invariant
        self.dense_copies = False
        finished = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
        self._way = Way(invariant, pdl, finished)
        self._placed: list[tuple[Tensor, Tensor]] = []

    def check(self, kind: Kind) -> None:
        if kind == "nf4":
            raise StartupError(
                "nf4 weights have no kernel for GPUs; dense, int8, int4 and fp8 have",
                hint="use --quantization int4, or --device cpu",
            )
        if kind == "fp8" and (here := fp8_lacks(self.device)):
            raise StartupError(
                f"fp8 weights need a GPU of compute capability 8.9; this one has {here}",
                hint="use an int8 or int4 checkpoint, or --device cpu",
            )

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, for several who use it: it is there once."""
        for host, there in self._placed:
            if host is tensor:
                return there
        self._placed.append((tensor, tensor.to(self.device)))
        return self._placed[-1][1]

    def dense(self, parts: Sequence[Tensor], bias: Tensor | None) -> Matrix:
        known = len(parts) == 1 and any(host is parts[0] for host, _ in self._placed)
        weight = self.place(parts[0]) if known else self._stack(parts)
        return TritonDense(weight.contiguous(), self._there(bias), self._way)

    def int8(self, parts: Sequence[Int8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        weight, scales = (
            self._stack([p.weight for p in parts]),
            self._stack([p.scales.float() for p in parts]),
        )
        return TritonInt8(weight, scales, self._there(bias), quantize_input, self._way)

    def int4(self, parts: Sequence[Int4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        codes = [unpack_int4(p.packed, len(p.scales), columns) for p in parts]
        packed = self._stack([int4_matmul.pack(one) for one in codes])
        zeros = None
        if any(p.zeros is not None for p in parts):
            each = [
                torch.full_like(p.scales, int4_matmul.ZERO) if p.zeros is None else p.zeros for p in parts
            ]
            zeros = self._stack([one.float() for one in each])
        scales = self._stack([p.scales.float() for p in parts])
        return TritonInt4(packed, scales, zeros, self._there(bias), columns, group, self._way)

    def nf4(self, parts: Sequence[NF4Part], bias: Tensor | None, *, columns: int, group: int) -> Matrix:
        raise AssertionError("refused by `check`")

    def fp8(self, parts: Sequence[FP8Part], bias: Tensor | None, *, quantize_input: bool) -> Matrix:
        lengths = [len(part.weight) for part in parts]
        columns = parts[0].weight.shape[1]
        if all(part.block[1] >= columns for part in parts):  # so scales are of rows
            per_row = [p.scales[:, 0].repeat_interleave(p.block[0])[: len(p.weight)] for p in parts]
            scales = self._stack([one.float() for one in per_row])
        elif any(part.block != (BLOCK, BLOCK) for part in parts):
            blocks = sorted({f"{p.block[0]} × {p.block[1]}" for p in parts if p.block != (BLOCK, BLOCK)})
            raise StartupError(
                f"fp8 weights with scales of {', '.join(blocks)} have no kernel for GPUs; "
                f"those of rows and of {BLOCK} × {BLOCK} have",
                hint="use a smaller --tensor-parallel-size, another checkpoint, or --device cpu",
            )
        elif any(length % BLOCK for length in lengths[:-1]):  # blocks do not meet at a border of the whole
            biases = [None] * len(parts) if bias is None else bias.split(lengths)
            return StackedMatrix(
                [self.fp8([p], b, quantize_input=quantize_input) for p, b in zip(parts, biases, strict=True)]
            )
        else:
            scales = self._stack([p.scales.float() for p in parts])
        weight = self._stack([p.weight for p in parts])
        return TritonFP8(weight, scales, self._there(bias), quantize_input, self._way)

    def _stack(self, parts: Sequence[Tensor]) -> Tensor:
        """On the device, and in one piece."""
        there = [part.to(self.device) for part in parts]
        return there[0].contiguous() if len(there) == 1 else torch.cat(there)

    def _there(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.to(self.device)


class OneRow(Protocol):
    """gemv.gemv or int4_gemv.int4_gemv of one matrix."""

    def __call__(
        self,
        x: Tensor,
        *,
        norm: RowNorm | None = None,
        add: Tensor | None = None,
        gated: bool = False,
        gelu: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor: ...


def alone(matrix: Matrix) -> OneRow | None:
    """As it multiplies one row that comes alone; None: as any other number of rows."""
    match matrix:
        case TritonDense() | TritonInt8() | TritonInt4() | TritonFP8():
            return matrix.alone
        case _:
            return None


class TritonDense:
    """A Matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None, way: Way) -> None:
        self.weight, self.bias, self._way = weight, bias, way
        one_row = partial(gemv, weight=weight, bias=bias, pdl=way.pdl)
        self.alone: OneRow | None = None if way.invariant else one_row
        self.shape = (weight.shape[0], weight.shape[1])

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if len(x) == 1 and self.alone is not None:
            return self.alone(x.contiguous(), add=_rows(add), out_dtype=out_dtype)
        same_type = out_dtype is None or out_dtype == x.dtype
        if len(x) > MANY_ROWS and same_type and not self._way.invariant:
            if add is not None and self.bias is None:
                return torch.addmm(add, x, self.weight.t())
            y = F.linear(x, self.weight, self.bias)
            return y if add is None else y.add_(add)
        return matmul(
            x,
            self.weight,
            bias=self.bias,
            add=_rows(add),
            out_dtype=out_dtype,
            invariant=self._way.invariant,
            finished=self._way.finished,
        )


class TritonInt8:
    """A Matrix."""

    def __init__(
        self, weight: Tensor, scales: Tensor, bias: Tensor | None, quantize_input: bool, way: Way
    ) -> None:
        self.weight, self.scales, self.bias = weight, scales, bias
        self._quantize_input, self._way = quantize_input, way
        one_row = partial(gemv, weight=weight, w_scales=scales, bias=bias, pdl=way.pdl)
        self.alone: OneRow | None = None if way.invariant else one_row
        self.shape = (weight.shape[0], weight.shape[1])

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if len(x) == 1 and self.alone is not None:
            return self.alone(x.contiguous(), add=_rows(add), out_dtype=out_dtype)
        codes, x_scales = quantize_rows(x, torch.int8) if self._quantize_input else (x, None)
        return matmul(
            codes, self.weight, x_scales=x_scales, w_scales=self.scales, bias=self.bias, add=_rows(add),
            out_dtype=out_dtype or x.dtype, invariant=self._way.invariant, finished=self._way.finished,
        )  # fmt: skip


class TritonInt4:
    """A Matrix."""

    def __init__(
        self,
        packed: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias: Tensor | None,
        columns: int,
        group: int,
        way: Way,
    ) -> None:
        self.packed, self.scales, self.zeros, self.bias = packed, scales, zeros, bias
        self.group, self._way = group, way
        weights = partial(int4_gemv, packed=packed, scales=scales, zeros=zeros, group=group)
        one_row = partial(weights, bias=bias, pdl=way.pdl)
        self.alone: OneRow | None = None if way.invariant else one_row
        self.shape = (len(packed), columns)

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if len(x) == 1 and self.alone is not None:
            return self.alone(x.contiguous(), add=_rows(add), out_dtype=out_dtype)
        return multiply_int4(
            x, self.packed, self.scales, self.zeros, self.group, bias=self.bias, add=_rows(add),
            out_dtype=out_dtype, invariant=self._way.invariant, finished=self._way.finished,
        )  # fmt: skip


class TritonFP8:
    """A Matrix."""

    def __init__(
        self, weight: Tensor, scales: Tensor, bias: Tensor | None, quantize_input: bool, way: Way
    ) -> None:
        self.weight, self.scales, self.bias = weight, scales, bias
        self._quantize_input, self._way = quantize_input and not way.invariant, way
        one_row = partial(gemv, weight=weight, w_scales=scales, bias=bias, pdl=way.pdl)
        self.alone: OneRow | None = None if way.invariant else one_row
        self.shape = (weight.shape[0], weight.shape[1])

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if len(x) == 1 and self.alone is not None:
            return self.alone(x.contiguous(), add=_rows(add), out_dtype=out_dtype)
        codes, x_scales = x, None
        if self._quantize_input and len(x) > MANY_ROWS:
            codes, x_scales = quantize_rows(x, self.weight.dtype, None if self.scales.dim() == 1 else BLOCK)
        return matmul(
            codes, self.weight, x_scales=x_scales, w_scales=self.scales, bias=self.bias, add=_rows(add),
            out_dtype=out_dtype or x.dtype, invariant=self._way.invariant, finished=self._way.finished,
        )  # fmt: skip


def _rows(add: Tensor | None) -> Tensor | None:
    return None if add is None else add.contiguous()
