"""Attention of one query per sequence over the paged cache, split along the context (Dao et al., "Flash-
Decoding", 2023).

    context   0        256       512       768    800      borders are absolute positions
              ├─ item ─┤─ item ─┤─ item ─┤─ item ┤         programs take items in turn

    plan      tokens of an item: SPLIT, or as few of SPLIT / 2, SPLIT / 4 … TILE as give no more items than
              programs; starts[row] = items of all rows before it         one small kernel per step and window
    attend    each item: softmax and weighted values of its part          static grid, items counted on the
              the last one of a row and KV head: all, rescaled and summed               device

All query heads of one KV head share its loads: they are the rows of one matrix product, padded to 16.
Scores and sums are float32; weights are rounded to the query's type for the second product. Sliding window,
soft cap on scores (Gemma 2), a learned sink per head (gpt-oss) and one-byte caches are variants of the
same kernel. A sequence of length 0 only pads the batch, and its output is zero.

The last one finds what the others left by the argument of matmul.leave_part: stores, barrier, one thread's
addition that releases and acquires, barrier, loads past the first cache; and it leaves its counter at 0, so
that a graph can be replayed.

So one sequence of 1,024 tokens is spread over all multiprocessors, and a large batch does not pay for small
items. A row's items, hence its last bits, depend on how long the others of its step are.

Not done here: several queries per sequence (prefill_attention.py), which also serves single ones where bits
must not depend on company.
"""

from copy import copy
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paged_kv import PagedKV
from .activation import tanh
from .dependent_launch import wait
from .paged import cache_rows, gather_reference

SPLIT = 256
"""Most tokens of an item. Its partial results are 1/32 of its KV bytes for four queries per KV head."""
TILE = 64
"""Tokens of one matrix product, whatever the block size."""
NO_WINDOW = 1 << 30
LEAST_DOT = 16
"""Of each size of a product on tensor cores. The interpreter does not ask for it."""
MOST_AT_ONCE = 256
REGISTERS = {4: 128, 3: 168, 2: None}
"""Of a thread at most, by programs of 128 threads that share a multiprocessor's 65,536."""
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
        self.split = torch.zeros(1, dtype=torch.int32, device=device)
        """Tokens of an item."""
        self.finished = torch.zeros(max_rows, num_heads, dtype=torch.int32, device=device)

    def sharing(self) -> "DecodePlan":
        """Another plan, of another window, over the same room: one layer attends at a time."""
        other = copy(self)
        other.starts, other.split = torch.zeros_like(self.starts), torch.zeros_like(self.split)
        return other

    def width(self, rows: int) -> int:
        """Power of two ≥ rows. One kernel serves all numbers of rows up to MOST_AT_ONCE of a plan."""
        most: int = triton.next_power_of_2(min(len(self.starts) - 1, MOST_AT_ONCE))
        width: int = triton.next_power_of_2(rows)
        return max(width, most)


@triton.jit
def _counts(lens, there, window, SPLIT: tl.constexpr):
    """Items of each row; a row without tokens has one, which makes its output zero."""
    counts = (lens + SPLIT - 1) // SPLIT - tl.maximum(lens - window, 0) // SPLIT
    return tl.where(there, tl.maximum(counts, 1), 0)


@triton.jit(do_not_specialize=["num_rows"])
def _plan(
    lens_ptr,  # int32 [rows]
    starts_ptr,  # out int32 [rows + 1]
    split_ptr,  # out int32 [1]
    num_rows,
    window,
    enough,  # items that keep all programs busy
    SPLIT: tl.constexpr,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,  # power of two ≥ rows
):
    rows = tl.arange(0, ROWS)
    there = rows < num_rows
    lens = tl.load(lens_ptr + rows, mask=there, other=0)
    counts, split = _counts(lens, there, window, SPLIT), SPLIT
    for halvings in tl.static_range(1, 8):
        if SPLIT >> halvings >= LEAST:
            smaller = _counts(lens, there, window, SPLIT >> halvings)
            fits = tl.sum(smaller, axis=0) <= enough
            counts, split = tl.where(fits, smaller, counts), tl.where(fits, SPLIT >> halvings, split)
    tl.store(starts_ptr + 1 + rows, tl.cumsum(counts, axis=0), mask=there)
    tl.store(starts_ptr, 0)
    tl.store(split_ptr, split)


@triton.jit
def _merge(
    partials_ptr,  # float32 [items, num_heads, DIM]
    stats_ptr,  # float32 [items, num_heads, 2]
    sinks_ptr,  # [num_heads], or None
    out_ptr,  # out [num_heads, DIM] of one row
    begin,
    end,
    kv_head,
    num_heads,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,  # power of two ≥ GROUP
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMS: tl.constexpr,  # merged at once
):
    """All items of a row, of the heads of one KV head. Others wrote them: they come out of the L2 cache."""
    head, dims = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    real, there = head < GROUP, dims < DIM
    heads = kv_head * GROUP + head
    best = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    if sinks_ptr is not None:
        best = tl.load(sinks_ptr + heads, mask=real, other=0.0).to(tl.float32) * LOG2_E
        total += 1.0
    mixed = tl.zeros([HEADS, WIDTH], tl.float32)
    for first in range(begin, end, ITEMS):
        items = first + tl.arange(0, ITEMS)
        mine = (items < end)[:, None] & real[None, :]
        at = items.to(tl.int64)[:, None] * num_heads + heads[None, :]
        bests = tl.load(stats_ptr + at * 2, mask=mine, other=-float("inf"), cache_modifier=".cg")
        totals = tl.load(stats_ptr + at * 2 + 1, mask=mine, other=0.0, cache_modifier=".cg")
        inside = mine[:, :, None] & there[None, None, :]
        part_ptr = partials_ptr + at[:, :, None] * DIM + dims[None, None, :]
        parts = tl.load(part_ptr, mask=inside, other=0.0, cache_modifier=".cg")
        new_best = tl.maximum(best, tl.max(bests, axis=0))
        shift = tl.where(new_best == -float("inf"), 0.0, new_best)  # of a row without tokens
        fade, shares = tl.exp2(best - shift), tl.exp2(bests - shift[None, :])
        mixed = mixed * fade[:, None] + tl.sum(parts * shares[:, :, None], axis=0)
        total = total * fade + tl.sum(totals * shares, axis=0)
        best = new_best
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    out = out_ptr + heads[:, None] * DIM + dims[None, :]
    tl.store(out, mixed.to(out_ptr.dtype.element_ty), mask=real[:, None] & there[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def _attend(
    query_ptr,  # [rows, num_heads, DIM], rows query_stride apart
    cache_ptr,  # [2, num_blocks, num_kv_heads, BLOCK_SIZE, DIM]
    scales_ptr,  # float32 [2, num_blocks, num_kv_heads, BLOCK_SIZE], or None
    tables_ptr,  # int32 [rows, table_stride]
    lens_ptr,  # int32 [rows]: tokens in the cache, this step's included
    starts_ptr,  # int32 [rows + 1]
    split_ptr,  # int32 [1]
    partials_ptr,  # float32 [items, num_heads, DIM], scratch
    stats_ptr,  # float32 [items, num_heads, 2], scratch
    finished_ptr,  # int32 [rows, num_kv_heads]: items that are done; 0 before and after
    sinks_ptr,  # [num_heads], or None
    out_ptr,  # out [rows, num_heads, DIM]
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
    TILE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ROWS: tl.constexpr,  # power of two ≥ rows
    HEADS: tl.constexpr,  # power of two ≥ GROUP
    ITEMS: tl.constexpr,  # merged at once
    PDL: tl.constexpr,
):
    wait(PDL)
    kv_head, num_heads = tl.program_id(1), num_kv_heads * GROUP
    heads = kv_head * GROUP + tl.arange(0, GROUP_WIDTH)
    real = tl.arange(0, GROUP_WIDTH) < GROUP
    dims = tl.arange(0, WIDTH)
    there = dims < DIM
    rows = tl.arange(0, ROWS)
    ends = tl.load(starts_ptr + 1 + rows, mask=rows < num_rows, other=1 << 30)
    num_items, split = tl.load(starts_ptr + num_rows), tl.load(split_ptr)

    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        row = tl.sum((ends <= item).to(tl.int32), axis=0)
        length = tl.load(lens_ptr + row)
        first_seen = tl.maximum(length - window, 0)
        first_item = tl.load(starts_ptr + row)
        begin = (first_seen // split + item - first_item) * split
        end = tl.minimum(begin + split, length)
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
        place = heads.to(tl.int64) + tl.cast(item, tl.int64) * num_heads
        inside = real[:, None] & there[None, :]
        tl.store(partials_ptr + place[:, None] * DIM + dims[None, :], mixed, mask=inside)
        tl.store(stats_ptr + place * 2, best, mask=real)
        tl.store(stats_ptr + place * 2 + 1, total, mask=real)
        tl.debug_barrier()  # what all threads have stored is there before one of them says so
        done_ptr = finished_ptr + row * num_kv_heads + kv_head
        last_item = tl.load(starts_ptr + row + 1)
        if tl.atomic_add(done_ptr, 1, sem="acq_rel") == last_item - first_item - 1:
            tl.store(done_ptr, 0)
            _merge(
                partials_ptr, stats_ptr, sinks_ptr, out_ptr + row.to(tl.int64) * num_heads * DIM,
                first_item, last_item, kv_head, num_heads, GROUP, HEADS, DIM, WIDTH, ITEMS,
            )  # fmt: skip


def plan_decode(
    plan: DecodePlan, context_lens: Tensor, window: int = NO_WINDOW, *, num_programs: int
) -> None:
    """Fill `plan` for int32 context_lens [rows]. Once per step, for all layers of this window."""
    rows, enough = len(context_lens), min(num_programs, len(plan.partials))
    _plan[(1,)](
        context_lens, plan.starts, plan.split, rows, window, enough,
        SPLIT=SPLIT, LEAST=TILE, ROWS=plan.width(rows), num_warps=4,
    )  # fmt: skip


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
    pdl: bool = False,
) -> Tensor:
    """query [rows, num_heads, head_dim], block_tables int32 [rows, width] → [rows, num_heads * head_dim].

    `plan` was filled from the same context_lens, window and `num_programs`: of each KV head, see `programs`.
    pdl: see dependent_launch.py.
    """
    rows, num_heads, dim = query.shape
    _, num_blocks, num_kv_heads, block_size, _ = kv.cache.shape
    group, width = num_heads // num_kv_heads, max(triton.next_power_of_2(dim), LEAST_DOT)
    heads = triton.next_power_of_2(group)
    out = torch.empty(rows, num_heads * dim, dtype=query.dtype, device=query.device)
    _attend[(num_programs, num_kv_heads)](
        query, kv.cache, kv.scales, block_tables, context_lens, plan.starts, plan.split,
        plan.partials, plan.stats, plan.finished, sinks, out,
        query.stride(0), block_tables.stride(0), rows, num_kv_heads, num_blocks * num_kv_heads * block_size,
        scores.window, scores.scale, scores.soft_cap,
        GROUP=group, GROUP_WIDTH=max(triton.next_power_of_2(group), LEAST_DOT), DIM=dim, WIDTH=width,
        BLOCK_SIZE=block_size, TILE=TILE if query.element_size() < 4 else TILE // 2,
        SOFT_CAP=scores.soft_cap > 0, ROWS=plan.width(rows), HEADS=heads,
        ITEMS=min(max(8192 // (heads * width * query.element_size()), 1), 16), num_warps=4, num_stages=2,
        PDL=pdl, launch_pdl=pdl, maxnreg=REGISTERS[_at_once(dim)] if query.element_size() < 4 else None,
    )  # fmt: skip
    return out


def programs(processors: int, kv: PagedKV) -> int:
    """Of each KV head: as many as the registers of all multiprocessors hold at once."""
    return max(_at_once(kv.cache.shape[4]) * processors // kv.cache.shape[2], 1)


def _at_once(dim: int) -> int:
    """Programs of a multiprocessor. Each has 32 KiB under way with heads of 128."""
    return 4 if dim <= 64 else 3 if dim <= 128 else 2


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
