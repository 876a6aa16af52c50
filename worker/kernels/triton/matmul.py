"""y = x Wᵀ on weights as they are stored: one kernel whose variants are

    dense     x, W of one type                                              skinny and wide batches
    W8A16     x 16-bit, W int8 or float8, a scale per row of W              W converted in registers
    W8A8      x int8 with a scale per row, W int8 with a scale per row      exact integer sums
    FP8       x and W float8, scales per row of each                        or W alone, as W8A16
    blocks    scales of W per 128 × 128, of x per row and 128 columns       each block's product is scaled

with bias and another summand in the epilogue. Sums are float32 (int32 for int8 times int8), rounded once.
Four-bit weights are in int4_matmul.py.

A matrix with few output tiles would leave most multiprocessors idle, so K is cut into parts. The program
that finishes a tile last adds up what all have left, in the order of K:

    rows ≤ 64              parts = f(N, K), never of the number of rows
    rows ≤ 128, ≤ 256      as many as leave a program to each multiprocessor, where there are fewer tiles
    more                   one

Tiles are taken in groups of GROUP_M rows of them, column after column: so many rows of x stay in the L2 cache
while each column of W is read once for them.

The tiles follow from the shape by rule, unless others were measured to be faster on this GPU (tuning.py).
Three sizes of tiles serve different numbers of rows, and K is cut into fewer parts for more of them, so a
row's last bits depend on how many there are. `invariant`: one size of tiles, and parts, for all, at a cost
that was not measured yet. Sums of float8 times float8 stay in the tensor cores, which on Hopper drop all but
some 14 bits of a product; with scales of blocks they leave them after each block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .tuning import Tiles

BLOCK = 128
"""Rows and columns of a block of scales."""
WAVES = 264
"""Programs that fill an H100 or H200 twice."""
LEAST_PART, LEAST_LARGE_PART = 256, 512
"""Columns of K in a part; of more than FEW_ROWS rows, whose sums are larger than what they are made of."""
GROUP_M = 16
"""Rows of tiles that are taken together."""
FEW_ROWS = 64
SOME_ROWS = (128, 256)
"""At most so many of a step: K is cut alike for all numbers between, so that no step has its own kernel."""
INVARIANT_ROWS = 64
"""Whose tiles serve all numbers of rows, where these must not matter."""


@triton.jit
def finish(
    y,  # float32 [M, N]
    rows,
    columns,
    inside,
    num_columns,
    x_scales_ptr,  # float32 [rows], or None
    w_scales_ptr,  # float32 [columns], or None
    bias_ptr,  # [columns], or None
    add_ptr,  # [rows, columns], or None
):
    """The epilogue: scales, bias, summand."""
    if x_scales_ptr is not None:
        y *= tl.load(x_scales_ptr + rows, mask=inside, other=0.0)
    if w_scales_ptr is not None:
        y *= tl.load(w_scales_ptr + columns, mask=inside, other=0.0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if add_ptr is not None:
        at = rows.to(tl.int64) * num_columns + columns
        y += tl.load(add_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def place_of(tile, num_rows, num_columns, TILE_M: tl.constexpr, TILE_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(row, column) of a tile."""
    down, across = tl.cdiv(num_rows, TILE_M), tl.cdiv(num_columns, TILE_N)
    first = tile // (GROUP_M * across) * GROUP_M
    height = tl.minimum(down - first, GROUP_M)
    within = tile % (GROUP_M * across)
    return first + within % height, within // height


@triton.jit
def leave_part(
    y,  # float32 [TILE_M, TILE_N]
    parts_ptr,  # out float32 [PARTS, size]
    finished_ptr,  # int32 [tiles]: parts that are done; 0 before and after
    tile,
    part,
    place,
    inside,
    size,
    PARTS: tl.constexpr,
):
    """Whether this was the last one, so that all are there.

    Why it sees them (PTX memory model): a program's stores come before its barrier, that before one thread's
    addition, which releases and acquires for the whole device. A tile's additions are one chain: the last one
    follows all others, and a barrier takes its answer, hence that order, to all threads before they load,
    past the first cache. Nobody else touches the counter again: 0 for the next launch or replay of the graph.
    """
    tl.store(parts_ptr + part.to(tl.int64) * size + place, y, mask=inside)
    tl.debug_barrier()  # what all threads have stored is there before one of them says so
    last = tl.atomic_add(finished_ptr + tile, 1, sem="acq_rel") == PARTS - 1
    if last:
        tl.store(finished_ptr + tile, 0)
    return last


@triton.jit
def add_parts(parts_ptr, place, inside, size, PARTS: tl.constexpr):
    """What all have left, in order. Others wrote it, so it comes out of the L2 cache."""
    y = tl.load(parts_ptr + place, mask=inside, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(1, PARTS):
        y += tl.load(parts_ptr + part * size + place, mask=inside, other=0.0, cache_modifier=".cg")
    return y


@triton.jit(do_not_specialize=["num_rows"])
def _matmul(
    x_ptr,  # [M, K], rows x_stride apart
    w_ptr,  # [N, K]
    x_scales_ptr,  # float32 [M], [M, ⌈K / 128⌉] if BLOCKS, or None
    w_scales_ptr,  # float32 [N], [⌈N / 128⌉, ⌈K / 128⌉] if BLOCKS, or None
    bias_ptr,  # [N], or None
    add_ptr,  # [M, N], or None
    y_ptr,  # out [M, N]
    parts_ptr,  # scratch float32 [PARTS, M, N], or None if it is one
    finished_ptr,  # int32 [tiles]: 0 before and after; or None
    num_rows,
    num_columns,
    k_size,
    x_stride,
    part_size,  # columns of K in a part, a multiple of TILE_K
    PARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    row, column = place_of(tile, num_rows, num_columns, TILE_M, TILE_N, GROUP_M)
    columns = column * TILE_N + tl.arange(0, TILE_N)
    rows = row * TILE_M + tl.arange(0, TILE_M)
    row_there, column_there = rows < num_rows, columns < num_columns
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride
    w_rows = w_ptr + columns.to(tl.int64)[:, None] * k_size
    integers: tl.constexpr = x_ptr.dtype.element_ty == tl.int8
    total = tl.zeros([TILE_M, TILE_N], tl.int32 if integers else tl.float32)
    begin = part * part_size
    end = tl.minimum(begin + part_size, k_size)
    num_blocks = (k_size + 127) // 128
    for start in range(begin, end, TILE_K):
        at = start + tl.arange(0, TILE_K)
        there = at < end
        x = tl.load(x_rows + at[None, :], mask=row_there[:, None] & there[None, :], other=0.0)
        w = tl.load(w_rows + at[None, :], mask=column_there[:, None] & there[None, :], other=0.0)
        w = tl.trans(w.to(x.dtype))
        if BLOCKS:
            product = tl.dot(x, w, input_precision="ieee")
            block = start // 128
            at_n = (columns // 128) * num_blocks + block
            product *= tl.load(w_scales_ptr + at_n, mask=column_there, other=0.0)[None, :]
            if x_scales_ptr is not None:
                at_m = rows * num_blocks + block
                product *= tl.load(x_scales_ptr + at_m, mask=row_there, other=0.0)[:, None]
            total += product
        elif integers:
            total += tl.dot(x, w, out_dtype=tl.int32)
        else:
            total = tl.dot(x, w, total, input_precision="ieee")
    inside = row_there[:, None] & column_there[None, :]
    place = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    y = total.to(tl.float32)
    if PARTS > 1:
        size = tl.cast(num_rows, tl.int64) * num_columns
        if not leave_part(y, parts_ptr, finished_ptr, tile, part, place, inside, size, PARTS):
            return
        y = add_parts(parts_ptr, place, inside, size, PARTS)
    if BLOCKS:
        y = finish(y, rows[:, None], columns[None, :], inside, num_columns, None, None, bias_ptr, add_ptr)
    else:
        y = finish(
            y, rows[:, None], columns[None, :], inside, num_columns,
            x_scales_ptr, w_scales_ptr, bias_ptr, add_ptr,
        )  # fmt: skip
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def choose(m: int, item_bytes: int) -> Tiles:
    """Tiles for a product of m rows of x, whose elements have so many bytes. Float32 runs in registers."""
    if item_bytes == 4:
        return Tiles(16, 32, 32, 4, 2)
    k = 128 if item_bytes == 1 else 64
    if m <= 16:
        return Tiles(16, 64, 128, 4, 4)
    if m <= 64:
        return Tiles(64, 64, k, 4, 4)
    return Tiles(128, 128, k, 8, 3)


def parts_of(n: int, k: int, programs: int = WAVES) -> int:
    """Into how many parts K is cut when there are few rows: about so many programs, of 64 columns each."""
    return max(min(programs // -(-n // 64), k // LEAST_PART), 1)


def parts_for(m: int, n: int, k: int, tiles: Tiles, programs: int = WAVES, *, invariant: bool = False) -> int:
    """Into how many parts K is cut for m rows."""
    if m <= FEW_ROWS or invariant:
        return parts_of(n, k, programs)
    rows = next((most for most in SOME_ROWS if m <= most), None)
    if rows is None:
        return 1
    return max(min(WAVES // 2 // (-(-n // tiles.n) * -(-rows // tiles.m)), k // LEAST_LARGE_PART), 1)


def matmul(
    x: Tensor,
    weight: Tensor,
    *,
    x_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    invariant: bool = False,
    tiles: Tiles | None = None,
    finished: Tensor | None = None,
) -> Tensor:
    """x [M, K], weight [N, K] → [M, N] in `out_dtype`, or x's (which then must not be of 8 bits).

    w_scales float32 [N], or [⌈N / 128⌉, ⌈K / 128⌉] of blocks; x_scales float32 [M, 1] or [M, ⌈K / 128⌉].
    finished int32, all zeros: of all products on one stream, so that none has to make its own.
    """
    (m, k), n = x.shape, len(weight)
    blocks = w_scales is not None and w_scales.dim() == 2
    if tiles is None:
        rows = INVARIANT_ROWS if invariant else m
        known = tuning.tiles(x.device, tuning.product(x, weight.dtype, rows, n))
        tiles = known or choose(rows, x.element_size())
    if blocks and tiles.k > BLOCK:
        tiles = tiles._replace(k=BLOCK)
    parts = parts_for(m, n, k, tiles, invariant=invariant)
    part_size = -(-k // parts) if parts > 1 else k
    part_size = -(-part_size // BLOCK) * BLOCK
    y = torch.empty(m, n, dtype=out_dtype or x.dtype, device=x.device)
    count = triton.cdiv(n, tiles.n) * triton.cdiv(m, tiles.m)
    left, finished = room(parts, y, count, finished)
    _matmul[(count, parts)](
        x, weight, x_scales, w_scales, bias, add, y, left, finished, m, n, k, x.stride(0), part_size,
        PARTS=parts, BLOCKS=blocks, TILE_M=tiles.m, TILE_N=tiles.n, TILE_K=tiles.k, GROUP_M=GROUP_M,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return y


def room(
    parts: int, y: Tensor, tiles: int, finished: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(for what each of several parts leaves of y, and for counting them), as far as it is not there."""
    if parts == 1:
        return None, None
    if finished is None or len(finished) < tiles:
        finished = torch.zeros(tiles, dtype=torch.int32, device=y.device)
    return torch.empty(parts, *y.shape, dtype=torch.float32, device=y.device), finished


def reference(
    x: Tensor,
    weight: Tensor,
    *,
    x_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """On dequantized numbers, in float64."""
    (n, k), wide = weight.shape, weight.double()
    if w_scales is not None and w_scales.dim() == 2:
        wide = wide * w_scales.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    elif w_scales is not None:
        wide = wide * w_scales[:, None]
    left = x.double()
    if x_scales is not None:
        left = (
            left
            * x_scales.repeat_interleave(-(-k // x_scales.shape[1]) if x_scales.shape[1] == 1 else BLOCK, 1)[
                :, :k
            ]
        )
    y = left @ wide.t()
    y = y if bias is None else y + bias
    y = y if add is None else y + add
    return y.to(out_dtype or x.dtype)
