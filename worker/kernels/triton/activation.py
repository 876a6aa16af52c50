"""Gated activations over the two halves of one matrix, act(gate) · up (Shazeer, 2020), and GELU alone.

Computed in float32 and rounded once. GELU is the tanh approximation (Hendrycks and Gimpel, 2016), as
Gemma and GPT-2 use it.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def tanh(x):
    """Through the exponential, which overflows to the right limits."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def _activate(
    x_ptr,  # [rows, 2 * size] (gate, up), or [rows, size] when not GATED
    y_ptr,  # out [rows, size]
    size,
    GELU: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < size
    start = x_ptr + row * size * (2 if GATED else 1)
    x = tl.load(start + columns, mask=there, other=0.0).to(tl.float32)
    x = gelu(x) if GELU else silu(x)
    if GATED:
        x *= tl.load(start + size + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * size + columns, x.to(y_ptr.dtype.element_ty), mask=there)


def activate(x: Tensor, *, gelu: bool = False, gated: bool = True) -> Tensor:
    """[rows, 2 * size] → [rows, size], gate first; not gated: the shape stays. SiLU, or GELU by tanh."""
    rows, width = x.shape
    size = width // 2 if gated else width
    y = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    grid = (rows, triton.cdiv(size, BLOCK))
    _activate[grid](x, y, size, GELU=gelu, GATED=gated, BLOCK=BLOCK, num_warps=4)
    return y


def reference(x: Tensor, *, gelu: bool = False, gated: bool = True) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1) if gated else (x.float(), None)
    y = F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)
    return (y if up is None else y * up).to(x.dtype)
