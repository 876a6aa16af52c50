"""y = act(W norm(x)) for one row and four-bit weights as int4_matmul.py packs them: gemv.py's program, with

    weight   (code - zero) · scale           16 + code is a float32 made of bits: no conversion
    sum      Σ over groups of scale · (Σ (16 + code) · x - (16 + zero) · Σ x)

so that a weight costs a shift, a logical operation and a multiplication, and a group what is left. Float32,
rounded once at the very end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import int4_matmul
from .dependent_launch import wait
from .gemv import AT_ONCE, THREADS, RowNorm, around, columns_of, finish_row

WORDS = tl.constexpr(2)
"""Of four bytes each that a thread loads at once: 16 weights of at most two groups."""


@triton.jit
def _sums(x):
    """[1, words] → [1, words / WORDS]"""
    return tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // WORDS, WORDS]), axis=2)


@triton.jit
def _fours(x):
    """[1, 4 · words] → what is multiplied by each byte of a word: four of [1, words]"""
    even, odd = tl.split(tl.reshape(x, [1, x.shape[1] // 2, 2]))
    first, third = tl.split(tl.reshape(even, [1, x.shape[1] // 4, 2]))
    second, fourth = tl.split(tl.reshape(odd, [1, x.shape[1] // 4, 2]))
    return first, second, third, fourth


@triton.jit
def _number(words, SHIFT: tl.constexpr):
    """16 + the code that begins at bit SHIFT."""
    moved = words << (19 - SHIFT) if SHIFT <= 19 else words >> (SHIFT - 19)
    return ((moved & 0x780000) | 0x41800000).to(tl.float32, bitcast=True)


@triton.jit
def _dot(words, x, FROM: tl.constexpr):
    """Σ (16 + code) · x of the low halves of all bytes (FROM 0), or of the high ones (4)."""
    total = _number(words, FROM) * x[0]
    total += _number(words, FROM + 8) * x[1]
    total += _number(words, FROM + 16) * x[2]
    total += _number(words, FROM + 24) * x[3]
    return _sums(total)


@triton.jit
def _scaled(dot, sums, scales_ptr, zeros_ptr, group, mask):
    """What these weights add. scales, zeros: rows of these columns."""
    scale = tl.load(scales_ptr + group, mask=mask, other=0.0)
    if zeros_ptr is not None:
        return scale * (dot - (16.0 + tl.load(zeros_ptr + group, mask=mask, other=0.0)) * sums)
    return scale * (dot - 24.0 * sums)


@triton.jit
def _added(
    words_ptr,  # int32 [COLUMNS, TILE]
    low,  # float32 four times [1, TILE] each
    high,
    low_sums,  # [1, TILE / WORDS]
    high_sums,
    scales_ptr,  # float32 [COLUMNS, 1]: where the rows of these columns begin
    zeros_ptr,  # likewise, or None
    low_group,  # [1, TILE / WORDS]
    high_group,
    mask,
    there,
    TOGETHER: tl.constexpr,
):
    words = tl.load(words_ptr, mask=mask, other=0, eviction_policy="evict_first")
    low_dot, high_dot = _dot(words, low, 0), _dot(words, high, 4)
    if TOGETHER:
        sums = low_sums + high_sums
        return _scaled(low_dot + high_dot, sums, scales_ptr, zeros_ptr, low_group, there)
    return _scaled(low_dot, low_sums, scales_ptr, zeros_ptr, low_group, there) + _scaled(
        high_dot, high_sums, scales_ptr, zeros_ptr, high_group, there
    )


@triton.jit
def _input(x_ptr, norm_ptr, at, k_size):
    """(x as it is multiplied, x) at these columns, float32."""
    there = at < k_size
    x = tl.load(x_ptr + at, mask=there, other=0.0, eviction_policy="evict_last").to(tl.float32)
    weighted = x
    if norm_ptr is not None:
        weight = tl.load(norm_ptr + at, mask=there, other=0.0, eviction_policy="evict_last")
        weighted = x * weight.to(tl.float32)
    return weighted, x


@triton.jit
def _int4_gemv(
    x_ptr,  # [K]
    norm_ptr,  # [K], or None
    words_ptr,  # int32 [N, ⌈K / 64⌉ · 8]; [2 N, …] if GATED
    scales_ptr,  # float32 [N or 2 N, groups]
    zeros_ptr,  # float32 [N or 2 N, groups], or None
    bias_ptr,  # [N or 2 N], or None
    add_ptr,  # [N], or None
    y_ptr,  # out [N]; [rows, N] if there are experts
    experts_ptr,  # int32 [rows], or None, as in gemv.py
    x_stride,
    n_size,
    k_size,
    row_words,
    num_groups,
    group_size,
    eps,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,  # words
    TOGETHER: tl.constexpr,  # whether the 64 weights of 32 bytes are of one group
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    PDL: tl.constexpr,
):
    wait(PDL)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < n_size
    if experts_ptr is not None:
        above = tl.load(experts_ptr + tl.program_id(1)).to(tl.int64) * n_size * (2 if GATED else 1)
        words_ptr += above * row_words
        scales_ptr += above * num_groups
        if zeros_ptr is not None:
            zeros_ptr += above * num_groups
        x_ptr += tl.program_id(1) * x_stride
        y_ptr += tl.program_id(1) * n_size
    rows = words_ptr + columns.to(tl.int64)[:, None] * row_words
    up_rows = rows + tl.cast(n_size, tl.int64) * row_words
    scale_rows = scales_ptr + columns[:, None] * num_groups
    up_scale_rows = scale_rows + n_size * num_groups
    zero_rows, up_zero_rows = zeros_ptr, zeros_ptr
    if zeros_ptr is not None:
        zero_rows = zeros_ptr + columns[:, None] * num_groups
        up_zero_rows = zero_rows + n_size * num_groups
    total = tl.zeros([COLUMNS, TILE // WORDS], tl.float32)
    up_total = tl.zeros([COLUMNS, TILE // WORDS], tl.float32)
    squares = tl.zeros([1, TILE], tl.float32)
    for start in range(0, row_words, TILE):
        byte = start * 4 + tl.arange(0, TILE * 4)[None, :]
        at = byte // 32 * 64 + byte % 32
        low, low_x = _input(x_ptr, norm_ptr, at, k_size)
        high, high_x = _input(x_ptr, norm_ptr, at + 32, k_size)
        if norm_ptr is not None:
            squares += tl.sum(tl.reshape(low_x * low_x + high_x * high_x, [1, TILE, 4]), axis=2)
        low, high = _fours(low), _fours(high)
        low_sums = _sums(low[0] + low[1] + low[2] + low[3])
        high_sums = _sums(high[0] + high[1] + high[2] + high[3])
        word = start + tl.arange(0, TILE)[None, :]
        first = start + tl.arange(0, TILE // WORDS)[None, :] * WORDS
        column = first // 8 * 64 + first % 8 * 4
        low_group = tl.minimum(column, k_size - 1) // group_size
        high_group = tl.minimum(column + 32, k_size - 1) // group_size
        stored = there[:, None] & (word < row_words)
        total += _added(
            tl.multiple_of(rows + word, [1, WORDS * 4]), low, high, low_sums, high_sums,
            scale_rows, zero_rows, low_group, high_group, stored, there[:, None], TOGETHER,
        )  # fmt: skip
        if GATED:
            up_total += _added(
                tl.multiple_of(up_rows + word, [1, WORDS * 4]), low, high, low_sums, high_sums,
                up_scale_rows, up_zero_rows, low_group, high_group, stored, there[:, None], TOGETHER,
            )  # fmt: skip
    finish_row(
        total, up_total, squares, columns, there, norm_ptr, None, bias_ptr, add_ptr, y_ptr,
        n_size, k_size, eps, GATED, GELU,
    )  # fmt: skip


def int4_gemv(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    *,
    norm: RowNorm | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    gated: bool = False,
    gelu: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    chosen: Tensor | None = None,
) -> Tensor:
    """x [1, K], weights as int4_matmul takes them → [1, N] in `out_dtype`, or x's. The rest is gemv's."""
    (rows, row_bytes), k = packed.shape[-2:], x.shape[1]
    n, count = rows // 2 if gated else rows, 1 if chosen is None else chosen.numel()
    assert chosen is None or (bias is None and add is None)
    y = torch.empty(count, n, dtype=out_dtype or x.dtype, device=x.device)
    columns, row_words = columns_of(n, 1, gated=gated, rows=count), row_bytes // 4
    loads = min(max(AT_ONCE // (columns * (2 if gated else 1) * WORDS.value * 4), 1), 2)
    tile = min(THREADS * WORDS.value * loads, triton.next_power_of_2(row_words))
    _int4_gemv[(triton.cdiv(n, columns), count)](
        x, norm.weight if norm else None, packed.view(torch.int32), scales, zeros, bias, add, y,
        chosen, 0 if len(x) == 1 else k, n, k, row_words, scales.shape[-1], group, norm.eps if norm else 0.0,
        COLUMNS=columns, TILE=tile, TOGETHER=group % 64 == 0 or group >= k, GATED=gated, GELU=gelu,
        PDL=pdl, launch_pdl=pdl, num_warps=THREADS // 32,
    )  # fmt: skip
    return y


def reference(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    *,
    norm: RowNorm | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    gated: bool = False,
    gelu: bool = False,
) -> Tensor:
    """In float64, rounded once."""

    def product(wide: Tensor) -> Tensor:
        return int4_matmul.reference(wide, packed, scales, zeros, group, bias=bias, add=add)

    return around(x, product, norm, gated=gated, gelu=gelu)
