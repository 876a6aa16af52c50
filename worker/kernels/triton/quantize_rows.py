"""Activations to 8 bits, a scale per row or per group of columns: what W8A8 and FP8 products take.

    scale = max |x| / limit        code = x / scale, int8 rounded to nearest with halves up

In float32. A row that is all zeros has a tiny scale, never zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paged_kv import LIMITS
from ..paged_kv import quantize as quantize_reference
from .paged import quantize


@triton.jit
def _quantize_rows(
    x_ptr,  # [rows, columns], rows x_stride apart
    codes_ptr,  # out [rows, columns]
    scales_ptr,  # out float32 [rows, groups]
    x_stride,
    columns,
    GROUP: tl.constexpr,  # columns that share a scale
    WIDTH: tl.constexpr,  # power of two ≥ GROUP
    LIMIT: tl.constexpr,
    ROUND: tl.constexpr,
):
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offsets = tl.arange(0, WIDTH)
    at = group * GROUP + offsets
    there = (offsets < GROUP) & (at < columns)
    x = tl.load(x_ptr + row * x_stride + at, mask=there, other=0.0).to(tl.float32)
    codes, scale = quantize(x, LIMIT, ROUND)
    tl.store(codes_ptr + row * columns + at, codes.to(codes_ptr.dtype.element_ty), mask=there)
    tl.store(scales_ptr + row * tl.num_programs(1) + group, scale)


def quantize_rows(x: Tensor, dtype: torch.dtype, group: int | None = None) -> tuple[Tensor, Tensor]:
    """[rows, columns] → (int8 or float8 [rows, columns], float32 scales [rows, groups]); None: one group."""
    rows, columns = x.shape
    group = group or columns
    groups, width = -(-columns // group), triton.next_power_of_2(group)
    codes = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    _quantize_rows[(rows, groups)](
        x, codes, scales, x.stride(0), columns,
        GROUP=group, WIDTH=width, LIMIT=LIMITS[dtype], ROUND=dtype == torch.int8,
        num_warps=min(max(width // 512, 1), 16),
    )  # fmt: skip
    return codes, scales


def reference(x: Tensor, dtype: torch.dtype, group: int | None = None) -> tuple[Tensor, Tensor]:
    pieces = [quantize_reference(part, dtype) for part in x.split(group or x.shape[1], dim=1)]
    return torch.cat([codes for codes, _ in pieces], 1), torch.stack([scales for _, scales in pieces], 1)
