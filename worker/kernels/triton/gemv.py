"""y = act(W norm(x)) for one row: no tensor core, weights from memory straight into registers, and one launch
for what stands around a product.

    program   COLUMNS outputs over all of K; every load of a tile is under way before its first sum
    experts   several matrices, stacked, of which each row of y has its own: whichever a router picked
    norm      Σ w · x · weight and Σ x² in one pass, scaled once at the end: RMSNorm costs no launch
    gated     COLUMNS rows of the gate and the same rows of what it gates: act(gate) · up is one store

Weights are of x's type, or int8 or float8 with a scale per row or per block of 128 × 128. Float32, rounded
once at the very end, where the unfused layers round between. Sums run in another order than matmul.py's, so
a row's bits differ from those in a larger batch: where that matters, matmul.py serves one row too.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import matmul
from .activation import gelu as gelu_tanh
from .activation import silu
from .dependent_launch import wait
from .matmul import BLOCK, finish

THREADS = 128
AT_ONCE = 64
"""Bytes of weights that a thread has under way, or more: 8 KiB of a program."""
MOST_COLUMNS = {1: 4, 2: 8, 4: 4}
"""By bytes of a weight: more would not leave registers for enough programs."""
ENOUGH = 4 * 132
"""Programs that keep the memory of an H100 or H200 busy: four a multiprocessor, with 32 KiB under way where
25 would do (4.8 TB/s times 0.7 µs over 132 multiprocessors)."""


class RowNorm(NamedTuple):
    """RMSNorm of x before it is multiplied."""

    weight: Tensor
    """[K]"""
    eps: float


@triton.jit
def _dot(x, w, COLUMNS: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr):
    """[COLUMNS or 1, TILE] each → [COLUMNS, TILE / LANES]: sums of what one thread loads at once."""
    return tl.sum(tl.reshape(w.to(tl.float32) * x, [COLUMNS, TILE // LANES, LANES]), axis=2)


@triton.jit
def finish_row(
    total,  # float32 [COLUMNS, n]: sums of each thread
    up_total,  # likewise, of what is gated
    squares,  # float32 [1, n]: Σ x² of each thread
    columns,  # [COLUMNS]
    there,
    norm_ptr,  # [K], or None
    w_scales_ptr,  # float32 [N or 2 N], or None
    bias_ptr,  # [N or 2 N], or None
    add_ptr,  # [N], or None
    y_ptr,  # out [N]
    n_size,
    k_size,
    eps,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
):
    """From what the threads have summed up to outputs."""
    scale = 1.0
    if norm_ptr is not None:
        scale = 1.0 / tl.sqrt(tl.sum(squares) / k_size + eps)
    y = tl.sum(total, axis=1) * scale
    y = finish(y, columns * 0, columns, there, n_size, None, w_scales_ptr, bias_ptr, add_ptr)
    if GATED:
        above = columns + n_size
        up = tl.sum(up_total, axis=1) * scale
        up = finish(up, columns * 0, above, there, n_size, None, w_scales_ptr, bias_ptr, None)
        y = (gelu_tanh(y) if GELU else silu(y)) * up
    tl.store(y_ptr + columns, y.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _gemv(
    x_ptr,  # [K]
    norm_ptr,  # [K], or None
    w_ptr,  # [N, K]; [2 N, K] if GATED
    w_scales_ptr,  # float32 [N or 2 N], [⌈(N or 2 N) / 128⌉, ⌈K / 128⌉] if BLOCKS, or None
    bias_ptr,  # [N or 2 N], or None
    add_ptr,  # [N], or None
    y_ptr,  # out [N]; [rows, N] if there are experts
    experts_ptr,  # int32 [rows]: of each row, whose matrix [of experts, …] it is multiplied by; or None
    x_stride,  # from one row to the next; 0: all are of the same x
    n_size,
    k_size,
    eps,
    BLOCKS: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two, so of one block
    TILE: tl.constexpr,
    LANES: tl.constexpr,  # weights of one load, which are of one block
    HALVED: tl.constexpr,  # loads of 8 bytes, not 16, so that a thread's weights meet its own numbers of x
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    PDL: tl.constexpr,
):
    wait(PDL)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < n_size
    num_blocks = (k_size + 127) // 128
    if experts_ptr is not None:
        expert, num_rows = tl.load(experts_ptr + tl.program_id(1)).to(tl.int64), n_size * (2 if GATED else 1)
        w_ptr += expert * num_rows * k_size
        if w_scales_ptr is not None:
            w_scales_ptr += expert * ((num_rows + 127) // 128 * num_blocks if BLOCKS else num_rows)
        x_ptr += tl.program_id(1) * x_stride
        y_ptr += tl.program_id(1) * n_size
    rows = w_ptr + columns.to(tl.int64)[:, None] * k_size
    up_rows = rows + tl.cast(n_size, tl.int64) * k_size
    total = tl.zeros([COLUMNS, TILE // LANES], tl.float32)
    up_total = tl.zeros([COLUMNS, TILE // LANES], tl.float32)
    squares = tl.zeros([1, TILE // LANES], tl.float32)
    for start in range(0, k_size, TILE):
        at = start + tl.arange(0, TILE)[None, :]
        inside = at < k_size
        mask = there[:, None] & inside
        w_at, up_at = rows + at, up_rows + at
        if HALVED:
            w_at, up_at = tl.multiple_of(w_at, [1, LANES]), tl.multiple_of(up_at, [1, LANES])
        w = tl.load(w_at, mask=mask, other=0.0, eviction_policy="evict_first")
        if GATED:
            up = tl.load(up_at, mask=mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_ptr + at, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if norm_ptr is not None:
            squares += _dot(x, x, 1, TILE, LANES)
            x *= tl.load(norm_ptr + at, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if BLOCKS:
            first = start + tl.arange(0, TILE // LANES)[None, :] * LANES
            scales_ptr = w_scales_ptr + tl.program_id(0) * COLUMNS // 128 * num_blocks + first // 128
            scales = tl.load(scales_ptr, mask=first < k_size, other=0.0)
            total += _dot(x, w, COLUMNS, TILE, LANES) * scales
            if GATED:
                up_scales_ptr = scales_ptr + n_size // 128 * num_blocks
                up_scales = tl.load(up_scales_ptr, mask=first < k_size, other=0.0)
                up_total += _dot(x, up, COLUMNS, TILE, LANES) * up_scales
        else:
            total += _dot(x, w, COLUMNS, TILE, LANES)
            if GATED:
                up_total += _dot(x, up, COLUMNS, TILE, LANES)
    finish_row(
        total, up_total, squares, columns, there, norm_ptr, None if BLOCKS else w_scales_ptr, bias_ptr,
        add_ptr, y_ptr, n_size, k_size, eps, GATED, GELU,
    )  # fmt: skip


def gemv(
    x: Tensor,
    weight: Tensor,
    *,
    norm: RowNorm | None = None,
    w_scales: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    gated: bool = False,
    gelu: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    chosen: Tensor | None = None,
) -> Tensor:
    """x [1, K], weight [N, K], bias [N], add [1, N] → [1, N] in `out_dtype`, or x's.

    w_scales float32 [N], or [⌈N / 128⌉, ⌈K / 128⌉] of blocks.
    gated: weight [2 N, K], gate first, scales and bias as long, no `add`; SiLU of the gate, or GELU by tanh.
    With scales of blocks N is a multiple of 128 then. pdl: see dependent_launch.py.
    chosen int32 [rows]: experts, whose weights and scales are stacked; x [1 or rows, K] → [rows, N], without
    bias or `add`.
    """
    rows, k = weight.shape[-2:]
    n, count = rows // 2 if gated else rows, 1 if chosen is None else chosen.numel()
    blocks = w_scales is not None and w_scales.dim() == weight.dim()
    assert not (blocks and gated) or n % BLOCK == 0
    assert chosen is None or (bias is None and add is None)
    y = torch.empty(count, n, dtype=out_dtype or x.dtype, device=x.device)
    item = weight.element_size()
    lanes, columns = 16 // max(item, 2), columns_of(n, item, gated=gated, rows=count)
    loads = AT_ONCE // (columns * (2 if gated else 1) * lanes * item)
    tile = min(THREADS * lanes * min(max(loads, 1), 4), max(triton.next_power_of_2(k), lanes))
    _gemv[(triton.cdiv(n, columns), count)](
        x, norm.weight if norm else None, weight, w_scales, bias, add, y, chosen, 0 if len(x) == 1 else k,
        n, k, norm.eps if norm else 0.0,
        BLOCKS=blocks, COLUMNS=columns, TILE=tile, LANES=lanes, HALVED=item == 1 and k % 16 == 0,
        GATED=gated, GELU=gelu, PDL=pdl, launch_pdl=pdl, num_warps=THREADS // 32,
    )  # fmt: skip
    return y


def columns_of(n: int, item_bytes: int, *, gated: bool, rows: int = 1) -> int:
    """Outputs of one program: as many as leave enough programs."""
    columns = MOST_COLUMNS[item_bytes] // (2 if gated else 1)
    while columns > 1 and -(-n // columns) * rows < ENOUGH:
        columns //= 2
    return columns


def reference(
    x: Tensor,
    weight: Tensor,
    *,
    norm: RowNorm | None = None,
    w_scales: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    gated: bool = False,
    gelu: bool = False,
) -> Tensor:
    """In float64, rounded once."""
    product = partial(matmul.reference, weight=weight, w_scales=w_scales, bias=bias, add=add)
    return around(x, product, norm, gated=gated, gelu=gelu)


def around(
    x: Tensor, product: Callable[[Tensor], Tensor], norm: RowNorm | None, *, gated: bool, gelu: bool
) -> Tensor:
    """What stands around a product, in float64, rounded once."""
    wide = x.double()
    if norm is not None:
        wide = F.rms_norm(wide, wide.shape[1:], norm.weight.double(), norm.eps)
    y = product(wide)
    if gated:
        gate, up = y.chunk(2, -1)
        y = (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up
    return y.to(x.dtype)
