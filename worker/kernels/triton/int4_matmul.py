"""y = x Wᵀ on four-bit weights with a scale and a zero point per group of columns (W4A16).

    byte     0 … 31 of each 32: low half of the byte j is code j, high half is code j + 32
    weight   (code - zero) · scale          zero: 8 where there are no zero points

as kernels/matmul.py packs them. So a tile of bytes [n, 32 · b] makes two tiles of weights, of neighbouring
columns each, and no code has to move: y += x_low W_lowᵀ + x_high W_highᵀ. Activations keep their type;
weights become that type in registers; sums are float32. K is cut into parts as in matmul.py.

Not done here: eight-bit activations, as the CPU's kernels take them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .matmul import (
    GROUP_M,
    INVARIANT_ROWS,
    WAVES,
    add_parts,
    finish,
    leave_part,
    parts_for,
    place_of,
    room,
)
from .tuning import Tiles

ZERO = 8.0
PROGRAMS = 2 * WAVES
"""Each has half as much under way as those of 8 bits."""


@triton.jit
def weights_of(
    codes,  # [n, bytes] of 0 … 15
    scales_ptr,  # float32 [N, groups], rows of these columns
    zeros_ptr,  # float32 [N, groups], or None
    group,
    there,
    DTYPE: tl.constexpr,
):
    scale = tl.load(scales_ptr + group, mask=there, other=0.0)
    if zeros_ptr is not None:
        zero = tl.load(zeros_ptr + group, mask=there, other=0.0)
        return ((codes.to(tl.float32) - zero[:, None]) * scale[:, None]).to(DTYPE)
    return ((codes.to(tl.float32) - 8.0) * scale[:, None]).to(DTYPE)


@triton.jit(do_not_specialize=["num_rows"])
def _int4_matmul(
    x_ptr,  # [M, K], rows x_stride apart
    packed_ptr,  # uint8 [N, ⌈K / 64⌉ · 32]
    scales_ptr,  # float32 [N, groups]
    zeros_ptr,  # float32 [N, groups], or None
    bias_ptr,  # [N], or None
    add_ptr,  # [M, N], or None
    y_ptr,  # out [M, N]
    parts_ptr,  # scratch float32 [PARTS, M, N], or None if it is one
    finished_ptr,  # int32 [tiles]: 0 before and after; or None
    num_rows,
    num_columns,
    k_size,
    x_stride,
    row_bytes,
    num_groups,
    group_size,
    part_bytes,
    PARTS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_BYTES: tl.constexpr,  # 32, or 64 where groups are multiples of 128
    GROUP_M: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    row, column = place_of(tile, num_rows, num_columns, TILE_M, TILE_N, GROUP_M)
    columns = column * TILE_N + tl.arange(0, TILE_N)
    rows = row * TILE_M + tl.arange(0, TILE_M)
    row_there, column_there = rows < num_rows, columns < num_columns
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride
    packed_rows = packed_ptr + columns.to(tl.int64)[:, None] * row_bytes
    group_rows = columns * num_groups
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    begin = part * part_bytes
    end = tl.minimum(begin + part_bytes, row_bytes)
    for start in range(begin, end, TILE_BYTES):
        byte = start + tl.arange(0, TILE_BYTES)
        stored = column_there[:, None] & (byte < end)[None, :]
        packed = tl.load(packed_rows + byte[None, :], mask=stored, other=0x88)
        low_at = (byte // 32) * 64 + byte % 32
        for half in tl.static_range(2):
            at = low_at + half * 32
            group = group_rows + tl.minimum(start * 2 + half * 32, k_size - 1) // group_size
            codes = (packed >> (4 * half)) & 15
            weights = weights_of(codes, scales_ptr, zeros_ptr, group, column_there, dtype)
            inside = row_there[:, None] & ((at < k_size) & (byte < end))[None, :]
            x = tl.load(x_rows + at[None, :], mask=inside, other=0.0)
            total = tl.dot(x, tl.trans(weights), total, input_precision="ieee")
    inside = row_there[:, None] & column_there[None, :]
    place = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    if PARTS > 1:
        size = tl.cast(num_rows, tl.int64) * num_columns
        if not leave_part(total, parts_ptr, finished_ptr, tile, part, place, inside, size, PARTS):
            return
        total = add_parts(parts_ptr, place, inside, size, PARTS)
    y = finish(total, rows[:, None], columns[None, :], inside, num_columns, None, None, bias_ptr, add_ptr)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def choose(m: int) -> Tiles:
    """Tiles for a product of m rows of x. Of k there are 64 at most where groups are no multiples of 128."""
    return Tiles(16, 64, 128, 4, 4) if m <= 16 else Tiles(64, 128, 128, 8, 3)


def int4_matmul(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    *,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    invariant: bool = False,
    tiles: Tiles | None = None,
    finished: Tensor | None = None,
) -> Tensor:
    """x [M, K], packed uint8 [N, ⌈K / 64⌉ · 32], scales and zeros float32 [N, ⌈K / group⌉] → [M, N].

    `group`: a multiple of 32, or K. The result has `out_dtype`, or x's; the rest is as in matmul.py.
    """
    (m, k), (n, row_bytes) = x.shape, packed.shape
    if tiles is None:
        rows = INVARIANT_ROWS if invariant else m
        tiles = tuning.tiles(x.device, tuning.product(x, packed.dtype, rows, n)) or choose(rows)
    tile_bytes = min(tiles.k // 2, 64 if group % 128 == 0 or group >= k else 32)
    parts = parts_for(m, n, 2 * row_bytes, tiles, PROGRAMS, invariant=invariant)
    part_bytes = triton.cdiv(triton.cdiv(row_bytes, parts), 64) * 64
    y = torch.empty(m, n, dtype=out_dtype or x.dtype, device=x.device)
    count = triton.cdiv(n, tiles.n) * triton.cdiv(m, tiles.m)
    left, finished = room(parts, y, count, finished)
    _int4_matmul[(count, parts)](
        x, packed, scales, zeros, bias, add, y, left, finished,
        m, n, k, x.stride(0), row_bytes, scales.shape[1], group, part_bytes,
        PARTS=parts, TILE_M=tiles.m, TILE_N=tiles.n, TILE_BYTES=tile_bytes, GROUP_M=GROUP_M,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return y


def pack(codes: Tensor) -> Tensor:
    """uint8 [N, K] of 0 … 15 → packed bytes; K is filled up with 8."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 64), value=8)
    blocks = padded.view(len(codes), -1, 2, 32)
    return (blocks[:, :, 0] | blocks[:, :, 1] << 4).flatten(1)


def reference(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    *,
    bias: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """On dequantized numbers, in float64."""
    k = x.shape[1]
    blocks = packed.view(len(packed), -1, 32)
    codes = torch.stack((blocks & 15, blocks >> 4), 2).flatten(1)[:, :k].double()
    spread = [side.repeat_interleave(group, 1)[:, :k] for side in (scales, zeros) if side is not None]
    weight = (codes - (spread[1] if zeros is not None else ZERO)) * spread[0]
    y = x.double() @ weight.t()
    y = y if bias is None else y + bias
    y = y if add is None else y + add
    return y.to(x.dtype)
