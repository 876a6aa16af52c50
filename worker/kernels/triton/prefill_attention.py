"""Causal attention of many queries per sequence over the paged cache: chunks of prompts, and what follows
a cached prefix (Dao, "FlashAttention-2", 2023).

    tokens lie flat, sequence after sequence; each program takes QUERIES neighbours of one sequence and one
    KV head, with all query heads of that KV head as further rows of its products:

        query_start  0       5   6          13            tiles per row: ⌈tokens / QUERIES⌉
        tiles        ├─0─┼─1─┤─2─┼──3──┼──4─┤             found on the device from query_start alone

Keys and values were written to the cache before (rope_kv.py), those of this step too, so a prefix needs
nothing special. Tiles of keys begin at multiples of TILE from position 0, whatever the chunk or the window:
a token's result does not depend on how its prompt was cut. Tiles that no query of the program sees are not
read. Precision, window, soft cap, sinks and one-byte caches as in decode_attention.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paged_kv import PagedKV
from .activation import tanh
from .decode_attention import LEAST_DOT, LOG2_E, Scores
from .paged import cache_rows, gather_reference


@triton.jit(do_not_specialize=["num_rows"])
def _prefill(
    query_ptr,  # [tokens, num_heads, DIM], tokens query_stride apart
    cache_ptr,  # [2, num_blocks, num_kv_heads, BLOCK_SIZE, DIM]
    scales_ptr,  # float32 [2, num_blocks, num_kv_heads, BLOCK_SIZE], or None
    tables_ptr,  # int32 [rows, table_stride]
    query_start_ptr,  # int32 [rows + 1]
    lens_ptr,  # int32 [rows]: tokens in the cache, this step's included
    sinks_ptr,  # [num_heads], or None
    out_ptr,  # out [tokens, num_heads, DIM]
    query_stride,
    table_stride,
    num_rows,
    num_kv_heads,
    side_rows,  # rows of DIM in the cache's keys
    window,
    scale,
    soft_cap,
    GROUP: tl.constexpr,  # query heads per KV head
    QUERIES: tl.constexpr,  # tokens per program
    M: tl.constexpr,  # power of two ≥ QUERIES * GROUP and ≥ 16
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ROWS: tl.constexpr,  # power of two ≥ rows
):
    # The last tiles of a prompt see the most keys: begun first, none of them ends alone.
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, ROWS)
    known = rows < num_rows
    starts = tl.load(query_start_ptr + rows, mask=known, other=0)
    stops = tl.load(query_start_ptr + 1 + rows, mask=known, other=0)
    tile_ends = tl.cumsum((stops - starts + QUERIES - 1) // QUERIES, axis=0)
    row = tl.sum((tile_ends <= tile).to(tl.int32), axis=0)
    if row >= num_rows:
        return
    before = tl.max(tl.where(rows < row, tile_ends, 0), axis=0)
    query_start, query_stop = tl.load(query_start_ptr + row), tl.load(query_start_ptr + row + 1)
    context_len = tl.load(lens_ptr + row)

    lanes = tl.arange(0, M)
    tokens = query_start + (tile - before) * QUERIES + lanes // GROUP
    heads = kv_head * GROUP + lanes % GROUP
    real = (lanes < QUERIES * GROUP) & (tokens < query_stop)
    own = tokens - query_stop + context_len  # position of each query in its sequence
    first_own = query_start + (tile - before) * QUERIES - query_stop + context_len
    last_own = tl.minimum(first_own + QUERIES, context_len) - 1
    dims = tl.arange(0, WIDTH)
    there = dims < DIM
    inside = real[:, None] & there[None, :]
    places = tokens.to(tl.int64)[:, None] * query_stride + heads[:, None] * DIM + dims[None, :]
    query = tl.load(query_ptr + places, mask=inside, other=0.0)

    best = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if sinks_ptr is not None:
        best = tl.load(sinks_ptr + heads, mask=real, other=0.0).to(tl.float32) * LOG2_E
        total += 1.0
    mixed = tl.zeros([M, WIDTH], tl.float32)
    table_ptr = tables_ptr + row.to(tl.int64) * table_stride
    first_tile = tl.maximum(first_own + 1 - window, 0) // TILE * TILE
    for start in range(first_tile, last_own + 1, TILE):
        positions = start + tl.arange(0, TILE)
        exists = positions <= last_own
        seen = (positions[None, :] <= own[:, None]) & (positions[None, :] > own[:, None] - window)
        rows_of_keys = cache_rows(table_ptr, positions, exists, kv_head, num_kv_heads, BLOCK_SIZE)
        loaded = exists[:, None] & there[None, :]
        keys = tl.load(cache_ptr + rows_of_keys[:, None] * DIM + dims[None, :], mask=loaded, other=0.0)
        scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision="ieee") * scale
        if scales_ptr is not None:
            scores *= tl.load(scales_ptr + rows_of_keys, mask=exists, other=0.0)[None, :]
        if SOFT_CAP:
            scores = soft_cap * tanh(scores / soft_cap)
        scores = tl.where(seen, scores * LOG2_E, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        shift = tl.where(new_best == -float("inf"), 0.0, new_best)  # of queries that see nothing yet
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(best - shift)
        total = total * fade + tl.sum(weights, axis=1)
        rows_of_keys += side_rows
        values = tl.load(cache_ptr + rows_of_keys[:, None] * DIM + dims[None, :], mask=loaded, other=0.0)
        if scales_ptr is not None:
            weights *= tl.load(scales_ptr + rows_of_keys, mask=exists, other=0.0)[None, :]
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weights.to(query.dtype), values.to(query.dtype), input_precision="ieee")
        best = new_best
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    out = tokens.to(tl.int64)[:, None] * (num_kv_heads * GROUP * DIM) + heads[:, None] * DIM + dims[None, :]
    tl.store(out_ptr + out, mixed.to(out_ptr.dtype.element_ty), mask=inside)


def prefill_attention(
    query: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scores: Scores,
    *,
    most_rows: int = 1,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [tokens, num_heads, head_dim] → [tokens, num_heads * head_dim].

    query_start int32 [rows + 1], context_lens int32 [rows]: a row's queries are its last positions. One
    kernel serves all numbers of rows up to `most_rows`.
    """
    tokens, num_heads, dim = query.shape
    _, num_blocks, num_kv_heads, block_size, _ = kv.cache.shape
    rows, group = len(context_lens), num_heads // num_kv_heads
    width = max(triton.next_power_of_2(dim), LEAST_DOT)
    m = product_rows(width, group, query.element_size())
    queries = m // group
    out = torch.empty(tokens, num_heads * dim, dtype=query.dtype, device=query.device)
    _prefill[(tokens // queries + rows, num_kv_heads)](
        query, kv.cache, kv.scales, block_tables, query_start, context_lens, sinks, out,
        query.stride(0), block_tables.stride(0), rows, num_kv_heads, num_blocks * num_kv_heads * block_size,
        scores.window, scores.scale, scores.soft_cap,
        GROUP=group, QUERIES=queries, M=m, DIM=dim, WIDTH=width, BLOCK_SIZE=block_size,
        TILE=key_tile(width, query.element_size()), SOFT_CAP=scores.soft_cap > 0,
        ROWS=triton.next_power_of_2(max(rows, most_rows)),
        num_warps=8 if m * width >= 128 * 128 else 4, num_stages=2,
    )  # fmt: skip
    return out


def product_rows(width: int, group: int, item_bytes: int) -> int:
    """Rows of a program's products, as far as their float32 sums fit the registers: the same for every chunk.
    Products of float32 run without tensor cores, and in registers alone."""
    least: int = max(triton.next_power_of_2(group), LEAST_DOT)
    return max((128 if item_bytes < 4 else 16) * 128 // max(width, 128), least)


def key_tile(width: int, item_bytes: int) -> int:
    """Keys of one product, so that two stages of keys and values fit the shared memory of all targets."""
    return 32 if width * item_bytes > 256 else 64


def reference(
    query: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scores: Scores,
    *,
    sinks: Tensor | None = None,
) -> Tensor:
    """Written out, row by row, in float32."""
    num_heads = query.shape[1]
    group = num_heads // kv.cache.shape[2]
    out = torch.empty(query.shape)
    starts = query_start.tolist()
    for row, length in enumerate(context_lens.tolist()):
        here = slice(starts[row], starts[row + 1])
        count = starts[row + 1] - starts[row]
        keys, values = gather_reference(kv, block_tables[row], length)
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        found = torch.einsum("qhd,nhd->hqn", query[here].float(), keys) * scores.scale
        if scores.soft_cap:
            found = scores.soft_cap * (found / scores.soft_cap).tanh()
        own = torch.arange(length - count, length)[:, None]
        at = torch.arange(length)[None]
        found.masked_fill_((at > own) | (at <= own - scores.window), float("-inf"))
        if sinks is not None:
            found = torch.cat((found, sinks.float()[:, None, None].expand(-1, count, 1)), -1)
        out[here] = torch.einsum("hqn,nhd->qhd", found.softmax(-1)[..., :length], values)
    return out.flatten(1).to(query.dtype)
