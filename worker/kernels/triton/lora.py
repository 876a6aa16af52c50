"""Low-rank adapters in one batch: each token has its own, or none (Chen et al., "Punica", 2023).

    shrink   h[t] = A[adapter of t] x[t]                    [rank], float32
    expand   y[t] += scale[adapter of t] · B[adapter of t] h[t]

One program per token (and piece of the output), as decoding needs; a prompt's tokens read their adapter's
matrices from L2 again and again. Sums are float32. Adapters of smaller rank are filled up with zeros.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _shrink(
    x_ptr,  # [tokens, K]
    a_ptr,  # [adapters, RANK, K]
    adapters_ptr,  # int32 [tokens], -1: none
    h_ptr,  # out float32 [tokens, RANK]
    k_size,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    adapter = tl.load(adapters_ptr + token).to(tl.int64)
    if adapter < 0:
        return
    ranks = tl.arange(0, RANK)
    rows = a_ptr + (adapter * RANK + ranks)[:, None] * k_size
    total = tl.zeros([RANK, TILE], tl.float32)
    for start in range(0, k_size, TILE):
        at = start + tl.arange(0, TILE)
        there = at < k_size
        x = tl.load(x_ptr + token * k_size + at, mask=there, other=0.0).to(tl.float32)
        total += tl.load(rows + at[None, :], mask=there[None, :], other=0.0).to(tl.float32) * x[None, :]
    tl.store(h_ptr + token * RANK + ranks, tl.sum(total, axis=1))


@triton.jit
def _expand(
    h_ptr,  # float32 [tokens, RANK]
    b_ptr,  # [adapters, N, RANK]
    adapters_ptr,  # int32 [tokens], -1: none
    scales_ptr,  # float32 [adapters]
    y_ptr,  # [tokens, N], rows y_stride apart; added to
    n_size,
    y_stride,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    adapter = tl.load(adapters_ptr + token).to(tl.int64)
    if adapter < 0:
        return
    columns, ranks = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.arange(0, RANK)
    there = columns < n_size
    h = tl.load(h_ptr + token * RANK + ranks) * tl.load(scales_ptr + adapter)
    rows = b_ptr + (adapter * n_size + columns)[:, None] * RANK
    b = tl.load(rows + ranks[None, :], mask=there[:, None], other=0.0).to(tl.float32)
    y_row = y_ptr + token * y_stride + columns
    y = tl.load(y_row, mask=there, other=0.0).to(tl.float32) + tl.sum(b * h[None, :], axis=1)
    tl.store(y_row, y.to(y_ptr.dtype.element_ty), mask=there)


def add_lora(x: Tensor, a: Tensor, b: Tensor, adapters: Tensor, scales: Tensor, y: Tensor) -> None:
    """y [tokens, N] += scales · B A x, in place.

    x [tokens, K], a [adapters, rank, K], b [adapters, N, rank] with a rank that is a power of two;
    adapters int32 [tokens] (-1: none), scales float32 [adapters].
    """
    (tokens, k), (_, n, rank) = x.shape, b.shape
    assert rank == triton.next_power_of_2(rank)
    h = torch.empty(tokens, rank, dtype=torch.float32, device=x.device)
    tile = max(2048 // rank, 16)
    _shrink[(tokens,)](x, a, adapters, h, k, RANK=rank, TILE=tile, num_warps=4)
    grid = (tokens, triton.cdiv(n, tile))
    _expand[grid](h, b, adapters, scales, y, n, y.stride(0), RANK=rank, TILE=tile, num_warps=4)


def reference(x: Tensor, a: Tensor, b: Tensor, adapters: Tensor, scales: Tensor, y: Tensor) -> None:
    for token, adapter in enumerate(adapters.tolist()):
        if adapter >= 0:
            delta = b[adapter].float() @ (a[adapter].float() @ x[token].float())
            y[token] = (y[token].float() + scales[adapter] * delta).to(y.dtype)
