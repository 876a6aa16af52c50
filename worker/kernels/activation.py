"""Activations of the feed-forward network, in the input's type.

Gated ones (Shazeer, 2020) take the two halves of one matrix: act(gate) · up.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def silu_and_multiply(x: Tensor) -> Tensor:
    """[n, 2 * size] → [n, size]"""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_tanh_and_multiply(x: Tensor) -> Tensor:
    """[n, 2 * size] → [n, size]; GELU by its tanh approximation."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def gelu_tanh(x: Tensor) -> Tensor:
    """[n, size] → [n, size]"""
    return F.gelu(x, approximate="tanh")
