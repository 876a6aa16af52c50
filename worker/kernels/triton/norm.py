"""Adding the residual and norming a row, in one pass: RMSNorm, RMSNorm of 1 + weight, LayerNorm.

    sum ← x + residual                        rounded to x's type, as the unfused pair rounds it
    y   ← sum / sqrt(mean(sum²) + eps) · weight                   RMSNorm, in float32, rounded once
    y   ← (sum - mean) / sqrt(var + eps) · weight + bias          LayerNorm, likewise

Gemma's checkpoints store weight - 1; the layer adds the 1 when it loads, in float32, and a float32 weight
beside half-precision rows is what this kernel then gets. A row must fit one program (65,536 elements).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(
    x_ptr,  # [rows, size], rows x_stride apart
    residual_ptr,  # [rows, size] or None
    weight_ptr,  # [size]
    bias_ptr,  # [size] or None: RMSNorm
    sum_ptr,  # out [rows, size]; None without a residual
    y_ptr,  # out [rows, size]
    x_stride,
    size,
    eps,
    WIDTH: tl.constexpr,  # power of two ≥ size
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    there = columns < size
    x = tl.load(x_ptr + row * x_stride + columns, mask=there, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + row * size + columns, mask=there, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * size + columns, rounded, mask=there)
        x = rounded.to(tl.float32)
    if bias_ptr is not None:
        mean = tl.sum(x, axis=0) / size
        x = tl.where(there, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / size + eps)
    y = x * scale * tl.load(weight_ptr + columns, mask=there, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * size + columns, y.to(y_ptr.dtype.element_ty), mask=there)


def norm(
    x: Tensor, weight: Tensor, eps: float, *, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x, residual [rows, size] → (y, x + residual). With a bias it is LayerNorm, else RMSNorm."""
    rows, size = x.shape
    y = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(y)
    width = triton.next_power_of_2(size)
    _norm[(rows,)](
        x, residual, weight, bias, None if residual is None else total, y,
        x.stride(0), size, eps,
        WIDTH=width, num_warps=min(max(width // 512, 1), 16),
    )  # fmt: skip
    return y, total


def reference(
    x: Tensor, weight: Tensor, eps: float, *, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    wide, size = total.float(), (x.shape[1],)
    if bias is not None:
        y = F.layer_norm(wide, size, weight.float(), bias.float(), eps)
    else:
        y = F.rms_norm(wide, size, weight.float(), eps)
    return y.to(x.dtype), total
