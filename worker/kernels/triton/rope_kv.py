"""Norm of query and key heads, rotation, and writing keys and values to the paged cache: one kernel.

    qkv [tokens, heads] ──┬─ q ─ norm ─ rotate ─▶ queries
                          ├─ k ─ norm ─ rotate ─▶ cache      (quantized if the cache is)
                          └─ v ─────────────────▶ cache

One program per token and head. In float32 with one rounding at the end, where the unfused layers round
after the norm and in the rotation; so half-precision results differ from those by an ulp or two. Queries
go to a tensor of their own: a rotation in place would read what another warp has already written.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paged_kv import LIMITS, PagedKV
from ..paged_kv import quantize as quantize_reference
from .dependent_launch import wait
from .paged import quantize


class HeadNorms(NamedTuple):
    """RMSNorm of each query and key over its head."""

    query: Tensor
    """[head_dim]"""
    key: Tensor
    eps: float


@triton.jit
def _rope_kv(
    qkv_ptr,  # [tokens, num_heads + 2 * num_kv_heads, DIM]
    positions_ptr,  # int64 [tokens]
    slots_ptr,  # int64 [tokens]: where keys and values go
    table_ptr,  # [max_len, 2, ROTARY]: cosines, sines with the rotation's sign; None: no rotation
    q_norm_ptr,  # [DIM] or None
    k_norm_ptr,
    queries_ptr,  # out [tokens, num_heads, DIM]
    cache_ptr,  # out [2, num_blocks, num_kv_heads, BLOCK_SIZE, DIM]
    scales_ptr,  # out float32 [2, num_blocks, num_kv_heads, BLOCK_SIZE], or None
    num_heads,
    num_kv_heads,
    side_rows,  # rows of DIM in the cache's keys
    eps,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # power of two ≥ DIM
    ROTARY: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LIMIT: tl.constexpr,
    ROUND: tl.constexpr,
    PDL: tl.constexpr,
):
    wait(PDL)
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, WIDTH)
    there = dims < DIM
    row_ptr = qkv_ptr + (token * (num_heads + 2 * num_kv_heads) + head) * DIM
    x = tl.load(row_ptr + dims, mask=there, other=0.0).to(tl.float32)
    is_query, is_value = head < num_heads, head >= num_heads + num_kv_heads

    scale = 1.0
    if q_norm_ptr is not None:
        scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / DIM + eps)
        q_weight = tl.load(q_norm_ptr + dims, mask=there, other=0.0).to(tl.float32)
        k_weight = tl.load(k_norm_ptr + dims, mask=there, other=0.0).to(tl.float32)
        weight = tl.where(is_query, q_weight, k_weight)
        x = tl.where(is_value, x, x * scale * weight)
    if table_ptr is not None:
        HALF: tl.constexpr = ROTARY // 2
        rotated = dims < ROTARY
        partner = tl.where(dims < HALF, dims + HALF, dims - HALF)
        y = tl.load(row_ptr + partner, mask=rotated, other=0.0).to(tl.float32)
        if q_norm_ptr is not None:
            q_weight = tl.load(q_norm_ptr + partner, mask=rotated, other=0.0).to(tl.float32)
            k_weight = tl.load(k_norm_ptr + partner, mask=rotated, other=0.0).to(tl.float32)
            y *= scale * tl.where(is_query, q_weight, k_weight)
        angle_ptr = table_ptr + tl.load(positions_ptr + token) * (2 * ROTARY)
        cos = tl.load(angle_ptr + dims, mask=rotated, other=1.0).to(tl.float32)
        sin = tl.load(angle_ptr + ROTARY + dims, mask=rotated, other=0.0).to(tl.float32)
        x = tl.where(is_value, x, x * cos + y * sin)

    if is_query:
        out_ptr = queries_ptr + (token * num_heads + head) * DIM
        tl.store(out_ptr + dims, x.to(queries_ptr.dtype.element_ty), mask=there)
    else:
        kv_head = tl.where(is_value, head - num_heads - num_kv_heads, head - num_heads)
        slot = tl.load(slots_ptr + token)
        row = ((slot // BLOCK_SIZE) * num_kv_heads + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
        row += tl.where(is_value, side_rows, 0)
        if scales_ptr is not None:
            x, vector_scale = quantize(x, LIMIT, ROUND)
            tl.store(scales_ptr + row, vector_scale)
        tl.store(cache_ptr + row * DIM + dims, x.to(cache_ptr.dtype.element_ty), mask=there)


def rope_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    table: Tensor | None,
    kv: PagedKV,
    num_heads: int,
    norms: HeadNorms | None = None,
    *,
    pdl: bool = False,
) -> Tensor:
    """Write the keys and values of a step; return its queries [tokens, num_heads, head_dim].

    qkv [tokens, num_heads + 2 * num_kv_heads, head_dim]; positions, slots int64 [tokens] (rows that only
    pad a step have a slot in the null block); table [max_len, 2, rotary_dim] as layers/rotary.py makes it,
    or None for layers that do not rotate. pdl: see dependent_launch.py.
    """
    _, num_blocks, num_kv_heads, block_size, dim = kv.cache.shape
    queries = torch.empty(len(qkv), num_heads, dim, dtype=qkv.dtype, device=qkv.device)
    _rope_kv[(len(qkv), num_heads + 2 * num_kv_heads)](
        qkv, positions, slots, table,
        norms.query if norms else None, norms.key if norms else None,
        queries, kv.cache, kv.scales,
        num_heads, num_kv_heads, num_blocks * num_kv_heads * block_size, norms.eps if norms else 0.0,
        DIM=dim, WIDTH=triton.next_power_of_2(dim), ROTARY=0 if table is None else table.shape[-1],
        BLOCK_SIZE=block_size, LIMIT=LIMITS.get(kv.cache.dtype, 0.0), ROUND=kv.cache.dtype == torch.int8,
        PDL=pdl, launch_pdl=pdl, num_warps=1,
    )  # fmt: skip
    return queries


def reference(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    table: Tensor | None,
    kv: PagedKV,
    num_heads: int,
    norms: HeadNorms | None = None,
) -> Tensor:
    num_kv_heads, block_size = kv.cache.shape[2:4]
    x = qkv.float()
    turned = x[:, : num_heads + num_kv_heads]
    if norms is not None:
        weights = torch.cat((norms.query.expand(num_heads, -1), norms.key.expand(num_kv_heads, -1))).float()
        turned = turned * (turned.square().mean(-1, keepdim=True) + norms.eps).rsqrt() * weights
    if table is not None:
        dim = table.shape[-1]
        cos, sin = table[positions].float().unsqueeze(2).unbind(1)
        part = turned[..., :dim]
        part = part * cos + part.roll(dim // 2, -1) * sin
        turned = torch.cat((part, turned[..., dim:]), -1)
    block, place = slots // block_size, slots % block_size
    for side, new in enumerate((turned[:, num_heads:], x[:, num_heads + num_kv_heads :])):
        if kv.scales is None:
            kv.cache[side, block, :, place] = new.to(kv.cache.dtype)
        else:
            numbers, scales = quantize_reference(new, kv.cache.dtype)
            kv.cache[side, block, :, place], kv.scales[side, block, :, place] = numbers, scales
    return turned[:, :num_heads].to(qkv.dtype)
