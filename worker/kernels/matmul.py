"""y = x Wᵀ (+ bias) (+ add) on weights of their stored type: bf16, f16, f32, int8, int4, nf4, fp8.

A matrix [N, K] is made of parts that lie anywhere (q, k and v of a checkpoint, views of a mapped file), one
under the other.

    dense   products and sums in float32
    int8    8-bit activations: x ≈ scale · int8, one scale per row of x, exact integer sums (W8A8);
            or the activations as they are, weights converted piece by piece (W8A16)
    int4    8-bit activations, one scale per row and group; exact integer sums within a group
    nf4     weights converted piece by piece
    fp8     weights converted piece by piece

With the kernels in C, row i of y depends bit for bit on row i of x and on W alone: not on how many rows
there are, nor on the number of threads (native_matrix.py). The matrices here are plain torch on weights that
are dequantized for each product: the truth of the tests, and what serves where there are no kernels in C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """float32 or bfloat16[n, groups]: weight = (code - zero) · scale"""
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
    def __init__(self, parts: Sequence[Tensor], bias: Tensor | None = None) -> None:
        """Parts [n, K] of one type: float32, bfloat16 or float16; rows may be strided."""
        self.parts, self.bias = list(parts), bias
        self.shape = sum(len(part) for part in parts), parts[0].shape[1]

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        return _product(x, torch.cat(self.parts), self.bias, add, out_dtype)


class Int8Matrix:
    def __init__(
        self, parts: Sequence[Int8Part], bias: Tensor | None = None, *, quantize_input: bool = True
    ) -> None:
        """`quantize_input`: W8A8; otherwise W8A16."""
        self.parts, self.bias, self.quantize_input = list(parts), bias, quantize_input
        self.shape = sum(len(part.weight) for part in parts), parts[0].weight.shape[1]

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
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
        self, parts: Sequence[Int4Part], bias: Tensor | None = None, *, columns: int, group: int
    ) -> None:
        """`columns` is K; `group` columns share a scale (a multiple of 32, or K), the last may be fewer."""
        self.parts, self.bias, self.group = list(parts), bias, group
        self.shape = sum(len(part.scales) for part in parts), columns

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        columns = self.shape[1]
        weight = torch.cat([dequantize_int4(part, columns, self.group) for part in self.parts])
        codes, scales = quantize_rows(x, self.group)
        return _product(
            codes * _spread(scales, self.group, columns), weight, self.bias, add, out_dtype or x.dtype
        )


class NF4Matrix:
    def __init__(
        self, parts: Sequence[NF4Part], bias: Tensor | None = None, *, columns: int, group: int
    ) -> None:
        """`columns` is K; `group` columns share an absmax (a multiple of 32, or K), the last may be fewer."""
        self.parts, self.bias, self.group = list(parts), bias, group
        self.shape = sum(len(part.absmax) for part in parts), columns

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        weight = torch.cat([dequantize_nf4(part, self.shape[1], self.group) for part in self.parts])
        return _product(x, weight, self.bias, add, out_dtype)


class FP8Matrix:
    def __init__(self, parts: Sequence[FP8Part], bias: Tensor | None = None) -> None:
        self.parts, self.bias = list(parts), bias
        self.shape = sum(len(part.weight) for part in parts), parts[0].weight.shape[1]

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
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
    inverse = torch.where(scales >= torch.finfo(torch.float32).tiny, 1 / scales, 0.0)
    codes = (padded * inverse[:, :, None]).round_().clamp_(-127, 127)
    return codes.flatten(1)[:, :columns], scales


def pack_int4(codes: Tensor) -> Tensor:
    """uint8[n, K] of 0 … 15 → what Int4Part holds: uint8[blocks of 16 rows, 64 · ceil(K / 8)].

    A block is [8 columns][16 rows][4 bytes]; byte j holds columns j (low) and j + 4 (high); 8 fills up.
    """
    n, k = codes.shape
    blocks = F.pad(codes, (0, -k % 8, 0, -n % 16), value=8).view(-(-n // 16), 16, -(-k // 8), 2, 4)
    packed = blocks[:, :, :, 0] | blocks[:, :, :, 1] << 4
    return packed.transpose(1, 2).contiguous().view(len(blocks), -1)


def pack_nf4(codes: Tensor) -> Tensor:
    """uint8[n, K], indexes into NF4 → what NF4Part holds."""
    return _pack_nibbles(codes)


def unpack_int4(packed: Tensor, rows: int, columns: int) -> Tensor:
    """→ uint8[rows, columns]"""
    blocks = packed.view(len(packed), -1, 16, 4).transpose(1, 2)
    return torch.stack((blocks & 15, blocks >> 4), 3).view(16 * len(packed), -1)[:rows, :columns]


def dequantize_int4(part: Int4Part, columns: int, group: int) -> Tensor:
    """→ float32[n, K]"""
    codes = unpack_int4(part.packed, len(part.scales), columns).float()
    zeros = INT4_ZERO if part.zeros is None else _spread(part.zeros, group, columns)
    return (codes - zeros) * _spread(part.scales.float(), group, columns)


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
