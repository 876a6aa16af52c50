"""y = W x for one row: no tensor core, no shared memory, weights from memory straight into registers.

One program makes COLUMNS outputs; its threads keep float32 sums of [COLUMNS, TILE] and add them up once at
the end. Weights are of x's type, or int8 or float8 with a scale per row. Its sums run in another order than
matmul.py's, so a row's bits differ from those in a larger batch: where that matters, matmul.py serves one row
too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .matmul import finish


@triton.jit
def _gemv(
    x_ptr,  # [K]
    w_ptr,  # [N, K]
    w_scales_ptr,  # float32 [N], or None
    bias_ptr,  # [N], or None
    add_ptr,  # [N], or None
    y_ptr,  # out [N]
    n_size,
    k_size,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < n_size
    rows = w_ptr + columns.to(tl.int64)[:, None] * k_size
    total = tl.zeros([COLUMNS, TILE], tl.float32)
    for start in range(0, k_size, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < k_size
        x = tl.load(x_ptr + at, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        mask = there[:, None] & inside[None, :]
        w = tl.load(rows + at[None, :], mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        total += w * x[None, :]
    y = finish(
        tl.sum(total, axis=1), columns * 0, columns, there, n_size, None, w_scales_ptr, bias_ptr, add_ptr
    )
    tl.store(y_ptr + columns, y.to(y_ptr.dtype.element_ty), mask=there)


def gemv(
    x: Tensor,
    weight: Tensor,
    *,
    w_scales: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [1, K], weight [N, K], w_scales float32 [N], bias [N], add [1, N] → [1, N] in `out_dtype`, or x's. As
    matmul.reference."""
    n, k = weight.shape
    y = torch.empty(1, n, dtype=out_dtype or x.dtype, device=x.device)
    columns = 8 if n >= 8192 else 4
    tile = 1024 // weight.element_size()
    _gemv[(triton.cdiv(n, columns),)](
        x, weight, w_scales, bias, add, y, n, k, COLUMNS=columns, TILE=tile, num_warps=4
    )
    return y
