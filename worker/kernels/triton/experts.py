"""Mixture of experts: each token multiplies by the matrices of its own experts only, in one launch per layer.

    route     tokens · top_k pairs sorted by expert, with torch's stable sort; starts[e] of each expert
    multiply  tiles of one expert's pairs × columns of its matrix; which tile is whose follows from starts,
              on the device: the grid is an upper bound, tiles ⌈pairs / TILE_M⌉ + experts
    combine   each token's top_k results, weighed and summed in the order of its experts, in float32

Weights are [experts, N, K] of x's type, or int8 or float8 with a scale per row, converted in registers. Sums
are float32. A token's sums do not depend on which tokens share its expert.

Not done here: expert parallelism, and quantized activations.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Routing(NamedTuple):
    pairs: Tensor
    """int32 [tokens * top_k] in order of experts; pair p is token p // top_k, its expert number p % top_k"""
    starts: Tensor
    """int32 [experts + 1]"""


@triton.jit
def _expert_matmul(
    x_ptr,  # [tokens, K], or [pairs, K] if not BY_TOKEN
    w_ptr,  # [experts, N, K]
    w_scales_ptr,  # float32 [experts, N], or None
    pairs_ptr,  # int32 [pairs], sorted
    starts_ptr,  # int32 [experts + 1]
    y_ptr,  # out [pairs, N], in the order of pairs, not of the sort
    num_experts,
    top_k,
    n_size,
    k_size,
    BY_TOKEN: tl.constexpr,
    EXPERTS: tl.constexpr,  # power of two ≥ experts
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    tile = tl.program_id(1)
    experts = tl.arange(0, EXPERTS)
    known = experts < num_experts
    starts = tl.load(starts_ptr + experts, mask=known, other=0)
    stops = tl.load(starts_ptr + 1 + experts, mask=known, other=0)
    tile_ends = tl.cumsum((stops - starts + TILE_M - 1) // TILE_M, axis=0)
    expert = tl.sum((tile_ends <= tile).to(tl.int32), axis=0)
    if expert >= num_experts:
        return
    before = tl.max(tl.where(experts < expert, tile_ends, 0), axis=0)
    places = tl.load(starts_ptr + expert) + (tile - before) * TILE_M + tl.arange(0, TILE_M)
    real = places < tl.load(starts_ptr + expert + 1)
    pairs = tl.load(pairs_ptr + places, mask=real, other=0).to(tl.int64)
    columns = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    there = columns < n_size
    x_rows = x_ptr + (pairs // top_k if BY_TOKEN else pairs)[:, None] * k_size
    w_rows = w_ptr + (expert.to(tl.int64) * n_size + columns)[:, None] * k_size
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    for start in range(0, k_size, TILE_K):
        at = start + tl.arange(0, TILE_K)
        inside = at < k_size
        x = tl.load(x_rows + at[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_rows + at[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
    if w_scales_ptr is not None:
        total *= tl.load(w_scales_ptr + expert * n_size + columns, mask=there, other=0.0)[None, :]
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


def route(chosen: Tensor, num_experts: int) -> Routing:
    """chosen int64 [tokens, top_k], the experts of each token. Safe in a graph: nothing is read back."""
    flat = chosen.flatten()
    by_expert, pairs = flat.sort(stable=True)
    experts = torch.arange(num_experts + 1, dtype=flat.dtype, device=flat.device)
    return Routing(pairs.int(), torch.searchsorted(by_expert, experts, out_int32=True))


def expert_matmul(
    x: Tensor,
    weight: Tensor,
    routing: Routing,
    top_k: int,
    w_scales: Tensor | None = None,
    *,
    invariant: bool = False,
) -> Tensor:
    """x [tokens, K], or [tokens * top_k, K]; weight [experts, N, K] → [tokens * top_k, N]. `invariant`: tiles
    of one size, however many tokens there are."""
    experts, n, k = weight.shape
    pairs = len(routing.pairs)
    y = torch.empty(pairs, n, dtype=x.dtype, device=x.device)
    few = pairs <= 4 * experts and not invariant
    tile_m, tile_n, tile_k, warps = (16, 64, 128, 4) if few else (64, 128, 64, 8)
    if x.element_size() == 4:
        tile_m, tile_n, tile_k, warps = 16, 32, 32, 4
    grid = (triton.cdiv(n, tile_n), min(triton.cdiv(pairs, tile_m) + experts, pairs))
    _expert_matmul[grid](
        x, weight, w_scales, routing.pairs, routing.starts, y, experts, top_k, n, k,
        BY_TOKEN=len(x) != pairs, EXPERTS=triton.next_power_of_2(experts),
        TILE_M=tile_m, TILE_N=tile_n, TILE_K=tile_k, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return y


def combine(y: Tensor, weights: Tensor, add: Tensor | None = None) -> Tensor:
    """y [tokens * top_k, size], weights float32 [tokens, top_k] → [tokens, size]."""
    (tokens, top_k), size = weights.shape, y.shape[1]
    out = torch.empty(tokens, size, dtype=y.dtype, device=y.device)
    _combine[(tokens, triton.cdiv(size, 1024))](
        y, weights, add, out, size, TOP_K=top_k, TILE=1024, num_warps=4
    )
    return out


def expert_matmul_reference(
    x: Tensor, weight: Tensor, chosen: Tensor, w_scales: Tensor | None = None
) -> Tensor:
    """Pair by pair, in float32."""
    top_k = chosen.shape[1]
    inputs = x if len(x) == chosen.numel() and top_k > 1 else x.repeat_interleave(top_k, 0)
    rows = [
        weight[expert].float() @ row.float() for row, expert in zip(inputs, chosen.flatten(), strict=True)
    ]
    y = torch.stack(rows)
    if w_scales is not None:
        y = y * w_scales[chosen.flatten()]
    return y.to(x.dtype)


def combine_reference(y: Tensor, weights: Tensor, add: Tensor | None = None) -> Tensor:
    mixed = (y.view(*weights.shape, -1).float() * weights.unsqueeze(-1)).sum(1)
    return (mixed if add is None else mixed + add.float()).to(y.dtype)
