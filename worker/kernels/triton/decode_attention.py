"""Attention of one query per sequence over the paged cache, split along the context (Dao et al., "Flash-
Decoding", 2023).

    context   0        256       512       768    800      SPLIT = 256: borders are absolute positions,
              ├─ item ─┤─ item ─┤─ item ─┤─ item ┤         so the order of every sum depends on this
                   programs take items in turn             sequence alone, not on the batch

    plan      starts[row] = splits of all rows before it          one small kernel per step and window
    attend    each item: softmax and weighted values of its part  static grid, items counted on the device
    merge     each row and head: its items, rescaled and summed

All query heads of one KV head share its loads: they are the rows of one matrix product, padded to 16.
Scores and sums are float32; weights are rounded to the query's type for the second product. Sliding window,
soft cap on scores (Gemma 2), a learned sink per head (gpt-oss) and one-byte caches are variants of the
same kernel. A sequence of length 0 only pads the batch, and its output is zero.

Not done here: several queries per sequence (prefill_attention.py), and merging inside the last program to
save the third launch.
"""

from copy import copy
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paged_kv import PagedKV
from .activation import tanh
from .paged import cache_rows, gather_reference

SPLIT = 256
"""Tokens per item. Partial results of an item are 1/32 of its KV bytes for four queries per KV head."""
TILE = 64
"""Tokens of one matrix product, whatever the block size."""
NO_WINDOW = 1 << 30
LEAST_DOT = 16
"""Of each size of a product on tensor cores. The interpreter does not ask for it."""
MOST_AT_ONCE = 256
LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are formed and what is seen."""

    scale: float
    window: int = NO_WINDOW
    """Tokens that a token sees, itself included."""
    soft_cap: float = 0.0
    """c: scores become c · tanh(score / c); 0: they stay."""


class DecodePlan:
    """Which items a step consists of, on the device, and room for their partial results. One per window.

    Its tensors are made once for the largest batch, so that a captured graph can go on using them.
    """

    def __init__(self, max_rows: int, max_items: int, num_heads: int, head_dim: int, device: torch.device):
        """`max_items`: Σ over rows of the splits that they touch, at most."""
        self.starts = torch.zeros(max_rows + 1, dtype=torch.int32, device=device)
        self.partials = torch.empty(max_items, num_heads, head_dim, dtype=torch.float32, device=device)
        self.stats = torch.empty(max_items, num_heads, 2, dtype=torch.float32, device=device)
        """Largest score (in powers of two) and sum of weights."""

    def sharing(self) -> "DecodePlan":
        """Another plan, of another window, over the same room: one layer attends at a time."""
        other = copy(self)
        other.starts = torch.zeros_like(self.starts)
        return other

    def width(self, rows: int) -> int:
        """Power of two ≥ rows. One kernel serves all numbers of rows up to MOST_AT_ONCE of a plan."""
        most: int = triton.next_power_of_2(min(len(self.starts) - 1, MOST_AT_ONCE))
        width: int = triton.next_power_of_2(rows)
        return max(width, most)


@triton.jit(do_not_specialize=["num_rows"])
def _plan(
    lens_ptr,  # int32 [rows]
    starts_ptr,  # out int32 [rows + 1]
    num_rows,
    window,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,  # power of two ≥ rows
):
    rows = tl.arange(0, ROWS)
    lens = tl.load(lens_ptr + rows, mask=rows < num_rows, other=0)
    counts = (lens + SPLIT - 1) // SPLIT - tl.maximum(lens - window, 0) // SPLIT
    tl.store(starts_ptr + 1 + rows, tl.cumsum(counts, axis=0), mask=rows < num_rows)
    tl.store(starts_ptr, 0)


@triton.jit(do_not_specialize=["num_rows"])
def _attend(
    query_ptr,  # [rows, num_heads, DIM], rows query_stride apart
    cache_ptr,  # [2, num_blocks, num_kv_heads, BLOCK_SIZE, DIM]
    scales_ptr,  # float32 [2, num_blocks, num_kv_heads, BLOCK_SIZE], or None
    tables_ptr,  # int32 [rows, table_stride]
    lens_ptr,  # int32 [rows]: tokens in the cache, this step's included
    starts_ptr,  # int32 [rows + 1]
    partials_ptr,  # out float32 [items, num_heads, DIM]
    stats_ptr,  # out float32 [items, num_heads, 2]
    query_stride,
    table_stride,
    num_rows,
    num_kv_heads,
    side_rows,  # rows of DIM in the cache's keys
    window,
    scale,
    soft_cap,
    GROUP: tl.constexpr,  # query heads per KV head
    GROUP_WIDTH: tl.constexpr,  # power of two ≥ GROUP and ≥ 16
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # power of two ≥ DIM and ≥ 16
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ROWS: tl.constexpr,  # power of two ≥ rows
):
    kv_head = tl.program_id(1)
    heads = kv_head * GROUP + tl.arange(0, GROUP_WIDTH)
    real = tl.arange(0, GROUP_WIDTH) < GROUP
    dims = tl.arange(0, WIDTH)
    there = dims < DIM
    rows = tl.arange(0, ROWS)
    ends = tl.load(starts_ptr + 1 + rows, mask=rows < num_rows, other=1 << 30)
    num_items = tl.load(starts_ptr + num_rows)

    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        row = tl.sum((ends <= item).to(tl.int32), axis=0)
        length = tl.load(lens_ptr + row)
        first_seen = tl.maximum(length - window, 0)
        begin = (first_seen // SPLIT + item - tl.load(starts_ptr + row)) * SPLIT
        end = tl.minimum(begin + SPLIT, length)
        begin = tl.maximum(begin, first_seen // TILE * TILE)
        query_row = query_ptr + row.to(tl.int64) * query_stride
        query = tl.load(
            query_row + heads[:, None] * DIM + dims[None, :], mask=real[:, None] & there[None, :], other=0.0
        )
        best = tl.full([GROUP_WIDTH], -float("inf"), tl.float32)
        total = tl.zeros([GROUP_WIDTH], tl.float32)
        mixed = tl.zeros([GROUP_WIDTH, WIDTH], tl.float32)
        for start in range(begin, end, TILE):
            positions = start + tl.arange(0, TILE)
            seen = (positions < end) & (positions >= first_seen)
            table_ptr = tables_ptr + row.to(tl.int64) * table_stride
            places = cache_rows(table_ptr, positions, seen, kv_head, num_kv_heads, BLOCK_SIZE)
            inside = seen[:, None] & there[None, :]
            keys = tl.load(cache_ptr + places[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
            scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision="ieee") * scale
            if scales_ptr is not None:
                scores *= tl.load(scales_ptr + places, mask=seen, other=0.0)[None, :]
            if SOFT_CAP:
                scores = soft_cap * tanh(scores / soft_cap)
            scores = tl.where(seen[None, :], scores * LOG2_E, -float("inf"))
            new_best = tl.maximum(best, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_best[:, None])
            fade = tl.exp2(best - new_best)
            total = total * fade + tl.sum(weights, axis=1)
            places += side_rows
            values = tl.load(cache_ptr + places[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
            if scales_ptr is not None:
                weights *= tl.load(scales_ptr + places, mask=seen, other=0.0)[None, :]
            weights = weights.to(query.dtype)
            mixed = mixed * fade[:, None]
            mixed += tl.dot(weights, values.to(query.dtype), input_precision="ieee")
            best = new_best
        place = heads.to(tl.int64) + item * (num_kv_heads * GROUP)
        inside = real[:, None] & there[None, :]
        tl.store(partials_ptr + place[:, None] * DIM + dims[None, :], mixed, mask=inside)
        tl.store(stats_ptr + place * 2, best, mask=real)
        tl.store(stats_ptr + place * 2 + 1, total, mask=real)


@triton.jit
def _merge(
    partials_ptr,  # float32 [items, num_heads, DIM]
    stats_ptr,  # float32 [items, num_heads, 2]
    starts_ptr,  # int32 [rows + 1]
    sinks_ptr,  # [num_heads], or None
    out_ptr,  # out [rows, num_heads, DIM]
    num_heads,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMS: tl.constexpr,  # merged at once
):
    row, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, WIDTH)
    there = dims < DIM
    begin, end = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    best = -float("inf")
    total = 0.0
    if sinks_ptr is not None:
        best = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        total = 1.0
    mixed = tl.zeros([WIDTH], tl.float32)
    for first in range(begin, end, ITEMS):
        items = first + tl.arange(0, ITEMS)
        mine = items < end
        places = items.to(tl.int64) * num_heads + head
        bests = tl.load(stats_ptr + places * 2, mask=mine, other=-float("inf"))
        new_best = tl.maximum(best, tl.max(bests, axis=0))
        fade = tl.exp2(best - new_best)
        shares = tl.exp2(bests - new_best)
        inside = mine[:, None] & there[None, :]
        parts = tl.load(partials_ptr + places[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
        mixed = mixed * fade + tl.sum(parts * shares[:, None], axis=0)
        totals = tl.load(stats_ptr + places * 2 + 1, mask=mine, other=0.0)
        total = total * fade + tl.sum(totals * shares, axis=0)
        best = new_best
    mixed = tl.where(end > begin, mixed / total, 0.0)
    out = out_ptr + (row.to(tl.int64) * num_heads + head) * DIM + dims
    tl.store(out, mixed.to(out_ptr.dtype.element_ty), mask=there)


def plan_decode(plan: DecodePlan, context_lens: Tensor, window: int = NO_WINDOW) -> None:
    """Fill `plan` for int32 context_lens [rows]. Once per step, for all layers of this window."""
    rows = len(context_lens)
    width = plan.width(rows)
    _plan[(1,)](context_lens, plan.starts, rows, window, SPLIT=SPLIT, ROWS=width, num_warps=4)


def decode_attention(
    query: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    context_lens: Tensor,
    plan: DecodePlan,
    scores: Scores,
    *,
    num_programs: int,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [rows, num_heads, head_dim], block_tables int32 [rows, width] → [rows, num_heads * head_dim].

    `plan` was filled from the same context_lens and window. `num_programs` per KV head: enough to fill the
    device, for example twice its multiprocessors divided by the KV heads.
    """
    rows, num_heads, dim = query.shape
    _, num_blocks, num_kv_heads, block_size, _ = kv.cache.shape
    group, width = num_heads // num_kv_heads, max(triton.next_power_of_2(dim), LEAST_DOT)
    _attend[(num_programs, num_kv_heads)](
        query, kv.cache, kv.scales, block_tables, context_lens, plan.starts, plan.partials, plan.stats,
        query.stride(0), block_tables.stride(0), rows, num_kv_heads, num_blocks * num_kv_heads * block_size,
        scores.window, scores.scale, scores.soft_cap,
        GROUP=group, GROUP_WIDTH=max(triton.next_power_of_2(group), LEAST_DOT), DIM=dim, WIDTH=width,
        BLOCK_SIZE=block_size, SPLIT=SPLIT, TILE=TILE if query.element_size() < 4 else TILE // 2,
        SOFT_CAP=scores.soft_cap > 0, ROWS=plan.width(rows), num_warps=4, num_stages=2,
    )  # fmt: skip
    out = torch.empty(rows, num_heads * dim, dtype=query.dtype, device=query.device)
    _merge[(rows, num_heads)](
        plan.partials, plan.stats, plan.starts, sinks, out, num_heads,
        DIM=dim, WIDTH=width, ITEMS=16, num_warps=4,
    )  # fmt: skip
    return out


def reference(
    query: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    context_lens: Tensor,
    scores: Scores,
    sinks: Tensor | None = None,
) -> Tensor:
    """Written out, row by row, in float32."""
    rows, num_heads, dim = query.shape
    group = num_heads // kv.cache.shape[2]
    out = torch.zeros(rows, num_heads, dim)
    for row, length in enumerate(context_lens.tolist()):
        if length:
            keys, values = gather_reference(kv, block_tables[row], length)
            seen = slice(max(length - scores.window, 0), length)
            found = torch.einsum("hd,nhd->hn", query[row].float(), keys[seen].repeat_interleave(group, 1))
            found *= scores.scale
            if scores.soft_cap:
                found = scores.soft_cap * (found / scores.soft_cap).tanh()
            if sinks is not None:
                found = torch.cat((found, sinks.float().unsqueeze(1)), 1)
            weights = found.softmax(-1)[:, : keys[seen].shape[0]]
            out[row] = torch.einsum("hn,nhd->hd", weights, values[seen].repeat_interleave(group, 1))
    return out.flatten(1).to(query.dtype)
