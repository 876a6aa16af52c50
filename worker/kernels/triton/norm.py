"""Norming a row, and adding another to it, in one pass: RMSNorm, RMSNorm of 1 + weight, LayerNorm.

    y ← x / sqrt(mean(x²) + eps) · weight                   RMSNorm, in float32, rounded once
    y ← (x - mean) / sqrt(var + eps) · weight + bias        LayerNorm, likewise
    y ← y + add                                             rounded as the unfused pair rounds it

The residual that a norm begins with needs no kernel: the product before it adds it in its epilogue
(matmul.py, gemv.py), which moves a row less. One that is added behind a norm, as Gemma 3 does, is added here.

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
    weight_ptr,  # [size]
    bias_ptr,  # [size] or None: RMSNorm
    add_ptr,  # [rows, size] or None
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
    if bias_ptr is not None:
        mean = tl.sum(x, axis=0) / size
        x = tl.where(there, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / size + eps)
    y = x * scale * tl.load(weight_ptr + columns, mask=there, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)
    if add_ptr is not None:
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
        y += tl.load(add_ptr + row * size + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * size + columns, y.to(y_ptr.dtype.element_ty), mask=there)


def norm(
    x: Tensor, weight: Tensor, eps: float, *, bias: Tensor | None = None, add: Tensor | None = None
) -> Tensor:
    """x, add [rows, size] → [rows, size]. With a bias it is LayerNorm, else RMSNorm."""
    rows, size = x.shape
    y = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    width = triton.next_power_of_2(size)
    _norm[(rows,)](
        x, weight, bias, None if add is None else add.contiguous(), y,
        x.stride(0), size, eps,
        WIDTH=width, num_warps=min(max(width // 512, 1), 16),
    )  # fmt: skip
    return y


def reference(
    x: Tensor, weight: Tensor, eps: float, *, bias: Tensor | None = None, add: Tensor | None = None
) -> Tensor:
    wide, size = x.float(), (x.shape[1],)
    if bias is not None:
        y = F.layer_norm(wide, size, weight.float(), bias.float(), eps)
    else:
        y = F.rms_norm(wide, size, weight.float(), eps)
    return y.to(x.dtype) if add is None else y.to(x.dtype) + add
