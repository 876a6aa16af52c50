"""y = x Wᵀ (+ bias) (+ add) on weights as they are stored: bf16, f16, f32, int8, int4, nf4, fp8.

A matrix [N, K] is made of parts that lie anywhere (q, k and v of a checkpoint, views of a mapped file), one
under the other. It holds its parts and multiplies; it never holds a dequantized copy of them.

    DenseMatrix   products and sums in float32
    Int8Matrix    8-bit activations: x ≈ scale · int8, one scale per row of x, exact integer sums (W8A8);
                  or the activations as they are, weights converted in registers (W8A16)
    Int4Matrix    8-bit activations, one scale per row and group; exact integer sums within a group
    NF4Matrix     weights converted in registers
    FP8Matrix     weights converted in registers

With the kernels in C, row i of y depends bit for bit on row i of x and on W alone: not on how many rows
there are, nor on the number of threads. The `reference` of each matrix is plain torch on dequantized
weights, which is the truth of the tests and serves where there are no kernels in C.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.library import Library

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 quantiles of a normal distribution (Dettmers et al., 2023, QLoRA)."""
INT4_ZERO = 8.0
"""The code that means 0 where a matrix has no zero points."""


class Matrix(Protocol):
    shape: tuple[int, int]
    """N, K"""

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        """x [M, K] (float32, bfloat16 or float16; rows may be strided) → [M, N] in `out_dtype`, or x's.

        `add` [M, N] has the type of the result. Sums are rounded to that type once, at the end.
        """


@dataclass(frozen=True)
class Int8Part:
    weight: Tensor
    """int8[n, K]; rows may be strided"""
    scales: Tensor
    """float32[n]"""


@dataclass(frozen=True)
class Int4Part:
    packed: Tensor
    """By `pack_int4`"""
    scales: Tensor
    """float32[n, groups]: weight = (code - zero) · scale"""
    zeros: Tensor | None
    """float32[n, groups], in units of codes; None: INT4_ZERO"""


@dataclass(frozen=True)
class NF4Part:
    packed: Tensor
    """By `pack_nf4`"""
    absmax: Tensor
    """float32[n, groups]: weight = NF4[code] · absmax"""


@dataclass(frozen=True)
class FP8Part:
    weight: Tensor
    """float8_e4m3fn[n, K]; rows may be strided"""
    scales: Tensor
    """float32[ceil(n / rows), ceil(K / columns)] of blocks; [1, 1] per tensor, [n, 1] per channel"""
    block: tuple[int, int]
    """rows, columns; (n, K) per tensor, (1, K) per channel, (128, 128) as DeepSeek's checkpoints"""


class DenseMatrix:
    def __init__(
        self, parts: Sequence[Tensor], *, bias: Tensor | None = None, kernels: Library | None = None
    ) -> None:
        """Parts [n, K] of one type: float32, bfloat16 or float16; rows may be strided."""
        self.parts = list(parts)
        self.bias = bias
        self.shape = sum(len(part) for part in parts), parts[0].shape[1]
        self._native: _Native | None = None
        if kernels is not None:
            rows = [_row(part) for part in parts]
            self._native = _Native(kernels, _TYPES[parts[0].dtype], self.shape, rows, bias)

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if self._native is None:
            return self.reference(x, add, out_dtype)
        assert x.dtype == self.parts[0].dtype, (x.dtype, self.parts[0].dtype)
        return self._native.multiply(x, add, out_dtype or x.dtype)

    def reference(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
        return _product(x, torch.cat(self.parts), self.bias, add, out_dtype)


class Int8Matrix:
    def __init__(
        self,
        parts: Sequence[Int8Part],
        *,
        quantize_input: bool = True,
        bias: Tensor | None = None,
        kernels: Library | None = None,
    ) -> None:
        """`quantize_input`: W8A8; otherwise W8A16."""
        self.parts = list(parts)
        self.quantize_input = quantize_input
        self.bias = bias
        self.shape = sum(len(part.weight) for part in parts), parts[0].weight.shape[1]

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.reference(x, add, out_dtype)

    def reference(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
        weight = torch.cat([part.weight for part in self.parts]).float()
        scales = torch.cat([part.scales for part in self.parts])
        dtype = out_dtype or x.dtype
        if not self.quantize_input:
            return _product(x, weight * scales[:, None], self.bias, add, dtype)
        codes, x_scales = quantize_rows(x)
        y = (codes.double() @ weight.double().t()).float()  # exact
        return _finish(y * scales * x_scales, self.bias, add, dtype)


class Int4Matrix:
    def __init__(
        self,
        parts: Sequence[Int4Part],
        columns: int,
        group: int,
        *,
        bias: Tensor | None = None,
        kernels: Library | None = None,
    ) -> None:
        """`columns` is K; `group` columns share a scale (a multiple of 32, or K), the last may be fewer."""
        self.parts = list(parts)
        self.group = group
        self.bias = bias
        self.shape = sum(len(part.scales) for part in parts), columns

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.reference(x, add, out_dtype)

    def reference(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
        columns = self.shape[1]
        weight = torch.cat([dequantize_int4(part, columns, self.group) for part in self.parts])
        codes, scales = quantize_rows(x, self.group)
        return _product(
            codes * _spread(scales, self.group, columns), weight, self.bias, add, out_dtype or x.dtype
        )


class NF4Matrix:
    def __init__(
        self,
        parts: Sequence[NF4Part],
        columns: int,
        group: int,
        *,
        bias: Tensor | None = None,
        kernels: Library | None = None,
    ) -> None:
        """`columns` is K; `group` columns share an absmax (a multiple of 32, or K), the last may be fewer."""
        self.parts = list(parts)
        self.group = group
        self.bias = bias
        self.shape = sum(len(part.absmax) for part in parts), columns

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.reference(x, add, out_dtype)

    def reference(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
        weight = torch.cat([dequantize_nf4(part, self.shape[1], self.group) for part in self.parts])
        return _product(x, weight, self.bias, add, out_dtype)


class FP8Matrix:
    def __init__(
        self, parts: Sequence[FP8Part], *, bias: Tensor | None = None, kernels: Library | None = None
    ) -> None:
        self.parts = list(parts)
        self.bias = bias
        self.shape = sum(len(part.weight) for part in parts), parts[0].weight.shape[1]

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.reference(x, add, out_dtype)

    def reference(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
        weight = torch.cat([dequantize_fp8(part) for part in self.parts])
        return _product(x, weight, self.bias, add, out_dtype)


# ── formats ─────────────────────────────────────────────────────────────────────────────────────


def quantize_rows(x: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """x [M, K] → codes float32[M, K] of -127 … 127, and scales float32[M, groups]: x ≈ code · scale.

    One scale per row, or per `group` columns of it: max |x| / 127; codes round to nearest, ties to even.
    """
    columns = x.shape[1]
    group = group or columns
    padded = F.pad(x.float(), (0, -columns % group)).view(len(x), -(-columns // group), group)
    scales = padded.abs().amax(2) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    codes = (padded * inverse[:, :, None]).round_().clamp_(-127, 127)
    return codes.flatten(1)[:, :columns], scales


def pack_int4(codes: Tensor) -> Tensor:
    """uint8[n, K] of 0 … 15 → what Int4Part holds."""
    return _pack_nibbles(codes)


def pack_nf4(codes: Tensor) -> Tensor:
    """uint8[n, K], indexes into NF4 → what NF4Part holds."""
    return _pack_nibbles(codes)


def unpack_int4(packed: Tensor, columns: int) -> Tensor:
    return _unpack_nibbles(packed, columns)


def dequantize_int4(part: Int4Part, columns: int, group: int) -> Tensor:
    """→ float32[n, K]"""
    codes = unpack_int4(part.packed, columns).float()
    zeros = INT4_ZERO if part.zeros is None else _spread(part.zeros, group, columns)
    return (codes - zeros) * _spread(part.scales, group, columns)


def dequantize_nf4(part: NF4Part, columns: int, group: int) -> Tensor:
    """→ float32[n, K]"""
    values = torch.tensor(NF4)[_unpack_nibbles(part.packed, columns).long()]
    return values * _spread(part.absmax, group, columns)


def dequantize_fp8(part: FP8Part) -> Tensor:
    """→ float32[n, K]"""
    (rows, columns), (n, k) = part.block, part.weight.shape
    scales = part.scales.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    return part.weight.float() * scales


def _pack_nibbles(codes: Tensor) -> Tensor:
    """Blocks of 64 codes in 32 bytes: byte j holds codes j (low) and j + 32 (high). K is filled up with 8."""
    blocks = F.pad(codes, (0, -codes.shape[1] % 64), value=8).view(len(codes), -1, 2, 32)
    return (blocks[:, :, 0] | blocks[:, :, 1] << 4).flatten(1)


def _unpack_nibbles(packed: Tensor, columns: int) -> Tensor:
    blocks = packed.view(len(packed), -1, 32)
    return torch.stack((blocks & 15, blocks >> 4), 2).flatten(1)[:, :columns]


def _spread(of_groups: Tensor, group: int, columns: int) -> Tensor:
    """[n, groups] → [n, columns]"""
    return of_groups.repeat_interleave(group, 1)[:, :columns]


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    return _finish(x.float() @ weight.float().t(), bias, add, out_dtype or x.dtype)


def _finish(y: Tensor, bias: Tensor | None, add: Tensor | None, dtype: torch.dtype) -> Tensor:
    if bias is not None:
        y = y + bias.float()
    if add is not None:
        y = y + add.float()
    return y.to(dtype)


# ── the kernels in C ────────────────────────────────────────────────────────────────────────────

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As matmul.h numbers the kinds; further kinds follow."""


class _Part(ctypes.Structure):
    """Part of matmul.h"""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("rows", ctypes.c_long),
        ("stride", ctypes.c_long),
        ("scale_rows", ctypes.c_long),
        ("scale_stride", ctypes.c_long),
    )


class _Matrix(ctypes.Structure):
    """Matrix of matmul.h"""

    _fields_ = (
        ("parts", ctypes.POINTER(_Part)),
        ("bias", ctypes.c_void_p),
        ("num_parts", ctypes.c_long),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("group", ctypes.c_long),
        ("kind", ctypes.c_int),
    )


def _row(weight: Tensor, rows: int | None = None, **more: int) -> _Part:
    """A part of which nothing but the weight is known yet."""
    assert weight.stride(1) == 1 or weight.shape[1] == 1, weight.stride()
    stride = weight.stride(0) * weight.element_size()
    return _Part(weight=weight.data_ptr(), rows=len(weight) if rows is None else rows, stride=stride, **more)


class _Native:
    """A matrix as the kernels see it. Its tensors are kept by the Matrix."""

    def __init__(
        self,
        kernels: Library,
        kind: int,
        shape: tuple[int, int],
        parts: Sequence[_Part],
        bias: Tensor | None,
        group: int = 0,
    ) -> None:
        self.n, self.k = shape
        self._bias = None if bias is None else bias.float().contiguous()
        self._parts = (_Part * len(parts))(*parts)
        self._matrix = _Matrix(
            parts=self._parts,
            bias=None if self._bias is None else self._bias.data_ptr(),
            num_parts=len(parts),
            n=self.n,
            k=self.k,
            group=group or self.k,
            kind=kind,
        )
        self._address = ctypes.addressof(self._matrix)
        pointer, integer, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        self._call = kernels.function(
            "tern_matmul", None, pointer, pointer, number, integer, integer, pointer, pointer, number
        )

    def multiply(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype) -> Tensor:
        m, k = x.shape
        assert k == self.k, (k, self.k)
        y = torch.empty(m, self.n, dtype=out_dtype)
        if not m:
            return y
        if x.stride(1) != 1:
            x = x.contiguous()
        if add is not None:
            add = add.contiguous()
            assert add.shape == y.shape, (add.shape, y.shape)
            assert add.dtype == out_dtype, (add.dtype, out_dtype)
        self._call(
            self._address,
            x.data_ptr(),
            _TYPES[x.dtype],
            m,
            x.stride(0),
            None if add is None else add.data_ptr(),
            y.data_ptr(),
            _TYPES[out_dtype],
        )
        return y
