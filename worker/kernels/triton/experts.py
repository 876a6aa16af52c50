"""Mixture of experts: each token multiplies by the matrices of its own experts only, in one launch per layer.

    multiply  tiles of one expert's pairs × columns of its matrix; which tile is whose follows from where each
              expert's pairs begin (routing.py), on the device: the grid is an upper bound,
              tiles ⌈pairs / TILE_M⌉ + experts
    combine   each token's top_k results, weighed and summed in the order of its experts, in float32

Weights are [experts, N, K] of x's type, or int8 or float8 with a scale per row or per block of 128 × 128,
converted in registers; or four bits in groups. Sums are float32. A token's sums do not depend on which tokens
share its expert. One token alone is multiplied by gemv.py and int4_gemv.py.

Not done here: expert parallelism, and quantized activations.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import int4_matmul, matmul
from .int4_matmul import weights_of
from .routing import Sorted
from .tuning import Tiles


class ExpertWeights(NamedTuple):
    """One matrix [N, K] of each expert, as they are stored."""

    stored: Tensor
    """[experts, N, K]; uint8 [experts, N, ⌈K / 64⌉ · 32] as int4_matmul.py packs them"""
    scales: Tensor | None = None
    """float32 [experts, N]; of blocks [experts, ⌈N / 128⌉, ⌈K / 128⌉]; of groups [experts, N, groups]"""
    zeros: Tensor | None = None
    """float32 [experts, N, groups], or None"""
    group: int = 0
    """Columns that share a scale: of four bits."""

    @property
    def blocks(self) -> bool:
        return self.scales is not None and self.scales.dim() == 3 and not self.group

    def one(self, expert: int) -> "ExpertWeights":
        """Without the first dimension."""
        scales, zeros = self.scales, self.zeros
        return self._replace(
            stored=self.stored[expert],
            scales=None if scales is None else scales[expert],
            zeros=None if zeros is None else zeros[expert],
        )


@triton.jit
def _whose(tile, starts_ptr, num_experts, EXPERTS: tl.constexpr, TILE_M: tl.constexpr):
    """(expert of a tile, num_experts if there is none; the tile's number among the expert's own)"""
    experts = tl.arange(0, EXPERTS)
    known = experts < num_experts
    starts = tl.load(starts_ptr + experts, mask=known, other=0)
    stops = tl.load(starts_ptr + 1 + experts, mask=known, other=0)
    tile_ends = tl.cumsum((stops - starts + TILE_M - 1) // TILE_M, axis=0)
    expert = tl.sum((known & (tile_ends <= tile)).to(tl.int32), axis=0)
    return expert, tile - tl.max(tl.where(experts < expert, tile_ends, 0), axis=0)


@triton.jit
def _expert_matmul(
    x_ptr,  # [tokens, K], or [pairs, K] if not BY_TOKEN
    w_ptr,  # [experts, N, K]
    w_scales_ptr,  # float32 [experts, N], [experts, ⌈N / 128⌉, ⌈K / 128⌉] if BLOCKS, or None
    pairs_ptr,  # int32 [pairs], sorted
    starts_ptr,  # int32 [experts + 1]
    y_ptr,  # out [pairs, N], in the order of pairs, not of the sort
    num_experts,
    top_k,
    n_size,
    k_size,
    BY_TOKEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    EXPERTS: tl.constexpr,  # power of two ≥ experts
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,  # at most 128 if BLOCKS
):
    expert, own = _whose(tl.program_id(1), starts_ptr, num_experts, EXPERTS, TILE_M)
    if expert >= num_experts:
        return
    places = tl.load(starts_ptr + expert) + own * TILE_M + tl.arange(0, TILE_M)
    real = places < tl.load(starts_ptr + expert + 1)
    pairs = tl.load(pairs_ptr + places, mask=real, other=0).to(tl.int64)
    columns = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    there = columns < n_size
    x_rows = x_ptr + (pairs // top_k if BY_TOKEN else pairs)[:, None] * k_size
    w_rows = w_ptr + (expert.to(tl.int64) * n_size + columns)[:, None] * k_size
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    num_blocks = (k_size + 127) // 128
    for start in range(0, k_size, TILE_K):
        at = start + tl.arange(0, TILE_K)
        inside = at < k_size
        x = tl.load(x_rows + at[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_rows + at[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        w = tl.trans(w.to(x.dtype))
        if BLOCKS:
            row = expert * ((n_size + 127) // 128) + columns // 128
            scales = tl.load(w_scales_ptr + row * num_blocks + start // 128, mask=there, other=0.0)
            total += tl.dot(x, w, input_precision="ieee") * scales[None, :]
        else:
            total = tl.dot(x, w, total, input_precision="ieee")
    if not BLOCKS and w_scales_ptr is not None:
        total *= tl.load(w_scales_ptr + expert * n_size + columns, mask=there, other=0.0)[None, :]
    out = pairs[:, None] * n_size + columns[None, :]
    tl.store(y_ptr + out, total.to(y_ptr.dtype.element_ty), mask=real[:, None] & there[None, :])


@triton.jit
def _int4_expert_matmul(
    x_ptr,  # [tokens, K], or [pairs, K] if not BY_TOKEN
    packed_ptr,  # uint8 [experts, N, ⌈K / 64⌉ · 32]
    scales_ptr,  # float32 [experts, N, groups]
    zeros_ptr,  # float32 [experts, N, groups], or None
    pairs_ptr,  # int32 [pairs], sorted
    starts_ptr,  # int32 [experts + 1]
    y_ptr,  # out [pairs, N], in the order of pairs, not of the sort
    num_experts,
    top_k,
    n_size,
    k_size,
    row_bytes,
    num_groups,
    group_size,
    BY_TOKEN: tl.constexpr,
    EXPERTS: tl.constexpr,  # power of two ≥ experts
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_BYTES: tl.constexpr,  # 32, or 64 where groups are multiples of 128
):
    expert, own = _whose(tl.program_id(1), starts_ptr, num_experts, EXPERTS, TILE_M)
    if expert >= num_experts:
        return
    places = tl.load(starts_ptr + expert) + own * TILE_M + tl.arange(0, TILE_M)
    real = places < tl.load(starts_ptr + expert + 1)
    pairs = tl.load(pairs_ptr + places, mask=real, other=0).to(tl.int64)
    columns = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    there = columns < n_size
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x_rows = x_ptr + (pairs // top_k if BY_TOKEN else pairs)[:, None] * k_size
    rows = expert.to(tl.int64) * n_size + columns
    packed_rows, group_rows = packed_ptr + rows[:, None] * row_bytes, rows * num_groups
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    for start in range(0, row_bytes, TILE_BYTES):
        byte = start + tl.arange(0, TILE_BYTES)
        stored = there[:, None] & (byte < row_bytes)[None, :]
        packed = tl.load(packed_rows + byte[None, :], mask=stored, other=0x88)
        low_at = (byte // 32) * 64 + byte % 32
        for half in tl.static_range(2):
            at = low_at + half * 32
            group = group_rows + tl.minimum(start * 2 + half * 32, k_size - 1) // group_size
            weights = weights_of((packed >> (4 * half)) & 15, scales_ptr, zeros_ptr, group, there, dtype)
            x = tl.load(x_rows + at[None, :], mask=real[:, None] & (at < k_size)[None, :], other=0.0)
            total = tl.dot(x, tl.trans(weights), total, input_precision="ieee")
    out = pairs[:, None] * n_size + columns[None, :]
    tl.store(y_ptr + out, total.to(y_ptr.dtype.element_ty), mask=real[:, None] & there[None, :])


@triton.jit
def _combine(
    y_ptr,  # [tokens, TOP_K, size]
    weights_ptr,  # float32 [tokens, TOP_K]
    add_ptr,  # [tokens, size], or None
    out_ptr,  # out [tokens, size]
    size,
    TOP_K: tl.constexpr,
    TILE: tl.constexpr,
):
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    there = columns < size
    total = tl.zeros([TILE], tl.float32)
    for i in range(TOP_K):
        y = tl.load(y_ptr + (token * TOP_K + i) * size + columns, mask=there, other=0.0)
        total += y.to(tl.float32) * tl.load(weights_ptr + token * TOP_K + i)
    if add_ptr is not None:
        total += tl.load(add_ptr + token * size + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * size + columns, total.to(out_ptr.dtype.element_ty), mask=there)


def choose(pairs: int, experts: int, item_bytes: int, *, invariant: bool = False) -> Tiles:
    """Few pairs leave most tiles almost empty; float32 runs in registers."""
    if item_bytes == 4:
        return Tiles(16, 32, 32, 4, 3)
    return Tiles(16, 64, 128, 4, 3) if pairs <= 4 * experts and not invariant else Tiles(64, 128, 64, 8, 3)


def expert_matmul(
    x: Tensor, weights: ExpertWeights, order: Sorted, top_k: int, *, invariant: bool = False
) -> Tensor:
    """x [tokens, K], or [tokens * top_k, K] → [tokens * top_k, N]. `invariant`: tiles of one size, however
    many tokens there are."""
    experts, n, row = weights.stored.shape
    pairs, k = len(order.pairs), x.shape[1]
    y = torch.empty(pairs, n, dtype=x.dtype, device=x.device)
    tiles = choose(pairs, experts, x.element_size(), invariant=invariant)
    grid = (triton.cdiv(n, tiles.n), min(triton.cdiv(pairs, tiles.m) + experts, pairs))
    by_token, width = len(x) != pairs, triton.next_power_of_2(experts)
    if (group := weights.group) and weights.scales is not None:
        tile_bytes = min(tiles.k // 2, 64 if group % 128 == 0 or group >= k else 32)
        _int4_expert_matmul[grid](
            x, weights.stored, weights.scales, weights.zeros, *order, y,
            experts, top_k, n, k, row, weights.scales.shape[2], group,
            BY_TOKEN=by_token, EXPERTS=width, TILE_M=tiles.m, TILE_N=tiles.n, TILE_BYTES=max(tile_bytes, 32),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    else:
        _expert_matmul[grid](
            x, weights.stored, weights.scales, *order, y, experts, top_k, n, k,
            BY_TOKEN=by_token, BLOCKS=weights.blocks, EXPERTS=width, TILE_M=tiles.m, TILE_N=tiles.n,
            TILE_K=tiles.k, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return y


def combine(
    y: Tensor, weights: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """y [tokens * top_k, size], weights float32 [tokens, top_k] → [tokens, size] in `out_dtype`, or y's."""
    (tokens, top_k), size = weights.shape, y.shape[1]
    out = torch.empty(tokens, size, dtype=out_dtype or y.dtype, device=y.device)
    _combine[(tokens, triton.cdiv(size, 1024))](
        y, weights, add, out, size, TOP_K=top_k, TILE=1024, num_warps=4
    )
    return out


def expert_matmul_reference(x: Tensor, weights: ExpertWeights, chosen: Tensor) -> Tensor:
    """Pair by pair, in float64."""
    top_k = chosen.shape[1]
    inputs = x if len(x) == chosen.numel() and top_k > 1 else x.repeat_interleave(top_k, 0)
    rows = [
        product_reference(row[None], weights.one(expert))
        for row, expert in zip(inputs, chosen.flatten().tolist(), strict=True)
    ]
    return torch.cat(rows)


def product_reference(x: Tensor, one: ExpertWeights) -> Tensor:
    """By one expert's matrix."""
    if one.group and one.scales is not None:
        return int4_matmul.reference(x, one.stored, one.scales, one.zeros, one.group)
    return matmul.reference(x, one.stored, w_scales=one.scales)


def combine_reference(y: Tensor, weights: Tensor, add: Tensor | None = None) -> Tensor:
    mixed = (y.view(*weights.shape, -1).float() * weights.unsqueeze(-1)).sum(1)
    return (mixed if add is None else mixed + add.float()).to(y.dtype)
