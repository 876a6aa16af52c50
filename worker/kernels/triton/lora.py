"""Low-rank adapters in one batch: each token has its own, or none (Chen et al., "Punica", 2023).

    shrink   h[t, s] = scale[adapter of t, s] · A[adapter of t, s] x[t]      [segments, rank], float32
    expand   y[t, c] += B[adapter of t, c] h[t, s]                           s: the segment of column c

One program per token and segment, or piece of the output, as decoding needs; a prompt's tokens read their
adapter's matrices from L2 again and again. Sums are float32. Smaller ranks, and segments that an adapter
leaves as they are, are filled up with zeros. Both kernels look up a token's adapter on the device, so a graph
of them serves whatever adapters its rows have.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lora import AdapterRows, Update, padded


@triton.jit
def _shrink(
    x_ptr,  # [tokens, K], rows x_stride apart
    a_ptr,  # [adapters, segments, RANK, K]
    scales_ptr,  # float32 [adapters, segments]
    adapters_ptr,  # int32 [tokens], -1: none
    h_ptr,  # out float32 [tokens, segments, RANK]
    k_size,
    x_stride,
    segments,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    token, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    adapter = tl.load(adapters_ptr + token).to(tl.int64)
    if adapter < 0:
        return
    ranks = tl.arange(0, RANK)
    its = adapter * segments + segment
    rows = a_ptr + (its * RANK + ranks)[:, None] * k_size
    total = tl.zeros([RANK, TILE], tl.float32)
    for start in range(0, k_size, TILE):
        at = start + tl.arange(0, TILE)
        there = at < k_size
        x = tl.load(x_ptr + token * x_stride + at, mask=there, other=0.0).to(tl.float32)
        total += tl.load(rows + at[None, :], mask=there[None, :], other=0.0).to(tl.float32) * x[None, :]
    h = tl.sum(total, axis=1) * tl.load(scales_ptr + its)
    tl.store(h_ptr + (token * segments + segment) * RANK + ranks, h)


@triton.jit
def _expand(
    h_ptr,  # float32 [tokens, segments, RANK]
    b_ptr,  # [adapters, N, RANK]
    segment_ptr,  # int32 [N]
    adapters_ptr,  # int32 [tokens], -1: none
    y_ptr,  # [tokens, N], rows y_stride apart; added to
    n_size,
    y_stride,
    segments,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    adapter = tl.load(adapters_ptr + token).to(tl.int64)
    if adapter < 0:
        return
    columns, ranks = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.arange(0, RANK)
    there = columns < n_size
    segment = tl.load(segment_ptr + columns, mask=there, other=0)
    h = tl.load(h_ptr + ((token * segments + segment) * RANK)[:, None] + ranks[None, :])
    rows = b_ptr + (adapter * n_size + columns)[:, None] * RANK
    b = tl.load(rows + ranks[None, :], mask=there[:, None], other=0.0).to(tl.float32)
    y_row = y_ptr + token * y_stride + columns
    y = tl.load(y_row, mask=there, other=0.0).to(tl.float32) + tl.sum(b * h, axis=1)
    tl.store(y_row, y.to(y_ptr.dtype.element_ty), mask=there)


def add_lora(
    x: Tensor, a: Tensor, b: Tensor, segment_of: Tensor, adapters: Tensor, scales: Tensor, y: Tensor
) -> None:
    """y [tokens, N] += what the tokens' adapters make of x, in place.

    x [tokens, K], a [adapters, segments, rank, K], b [adapters, N, rank] with a rank that is a power of two;
    segment_of int32 [N]; adapters int32 [tokens] (-1: none), scales float32 [adapters, segments].
    """
    (tokens, k), (_, n, rank), segments = x.shape, b.shape, a.shape[1]
    assert rank == triton.next_power_of_2(rank)
    h = torch.empty(tokens, segments, rank, dtype=torch.float32, device=x.device)
    tile = max(2048 // rank, 16)
    _shrink[(tokens, segments)](
        x, a, scales, adapters, h, k, x.stride(0), segments, RANK=rank, TILE=tile, num_warps=4
    )
    grid = (tokens, triton.cdiv(n, tile))
    _expand[grid](h, b, segment_of, adapters, y, n, y.stride(0), segments, RANK=rank, TILE=tile, num_warps=4)


def reference(
    x: Tensor, a: Tensor, b: Tensor, segment_of: Tensor, adapters: Tensor, scales: Tensor, y: Tensor
) -> None:
    for token, adapter in enumerate(adapters.tolist()):
        if adapter >= 0:
            h = (a[adapter].float() @ x[token].float()) * scales[adapter][:, None]
            delta = (b[adapter].float() * h[segment_of.long()]).sum(1)
            y[token] = (y[token].float() + delta).to(y.dtype)


class TritonProduct:
    """A Product, see ../lora.py."""

    def __init__(
        self, segments: Sequence[int], updates: Sequence[Update], rows: AdapterRows, device: torch.device
    ) -> None:
        self._rows = rows
        present = [factors for update in updates for factors in update if factors is not None]
        rank, k, dtype = padded(max(len(f.a) for f in present)), present[0].a.shape[1], present[0].a.dtype
        count, n = len(updates), sum(segments)
        self._a = torch.zeros(count, len(segments), rank, k, dtype=dtype, device=device)
        self._b = torch.zeros(count, n, rank, dtype=dtype, device=device)
        self._scales = torch.zeros(count, len(segments), device=device)
        each = torch.tensor(segments, device=device)
        self._segment_of = torch.arange(len(segments), dtype=torch.int32, device=device).repeat_interleave(
            each
        )
        for number, update in enumerate(updates):
            for segment, (factors, b) in enumerate(
                zip(update, self._b[number].split_with_sizes(list(segments)), strict=True)
            ):
                if factors is not None:
                    self._a[number, segment, : len(factors.a)] = factors.a
                    b[:, : len(factors.a)] = factors.b
                    self._scales[number, segment] = factors.scale

    def add_to(self, y: Tensor, x: Tensor) -> None:
        if self._rows.some:
            add_lora(x, self._a, self._b, self._segment_of, self._rows.numbers, self._scales, y)
