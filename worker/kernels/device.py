"""What layers ask of a device that has kernels of its own: made once, when a model is built for it.

The CPU is none of these: there, layers use torch and the library in C (cpu/library.py).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kv_layout import Window
from .activation import Activation
from .attention import StepLayout
from .matmul import Matrix
from .native_attention import HeadNorms


class NormKernel(Protocol):
    def __call__(self, x: Tensor, add: Tensor | None) -> Tensor:
        """[…, size] → the same, plus `add` if given"""


class AttentionKernel(Protocol):
    """All between one layer's two projections: norms of heads, rotation, KV write, attention."""

    def __call__(
        self, qkv: Tensor, cache: Tensor, step: Any, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        """qkv [tokens, heads + 2 * kv heads, head_dim] in one piece; `step` is what the device's own planner
        made; cos and sin [tokens, 1, rotary_dim] → [tokens, heads * head_dim]"""


class StepPlanner(Protocol):
    """Turns a step's layout into what the device's attention takes, once for all layers of a group."""

    def plan(self, layout: StepLayout, block_tables: NDArray[Any]) -> Sequence[Any]:
        """One for each KV group; block_tables int32 [groups, n, width]."""

    def release(self) -> None:
        """Give back what only a step needs."""

    @property
    def needs_blank_blocks(self) -> bool:
        """Whether what others left in a block is multiplied, if only by zero."""


class DeviceKernels(Protocol):
    """Tensors that are given are on the device, or are moved there."""

    @property
    def device(self) -> torch.device: ...

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> NormKernel:
        """LayerNorm with a bias, else RMSNorm."""

    def activation(self, function: Activation) -> Activation: ...

    def attention(self, num_heads: int, scale: float, norms: HeadNorms | None) -> AttentionKernel: ...

    def matrix(self, parts: Sequence[Tensor], bias: Tensor | None) -> Matrix:
        """Of parts [n, K] as they are stored, one under the other."""

    def planner(self, block_size: int, windows: Sequence[Window]) -> StepPlanner:
        """`windows`: of each KV group."""
