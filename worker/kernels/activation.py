"""SwiGLU's gate (Shazeer, 2020): silu(gate) · up, of the two halves of one matrix, in the input's type."""

import torch.nn.functional as F
from torch import Tensor


def silu_and_multiply(x: Tensor) -> Tensor:
    """[n, 2 * size] → [n, size]"""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
