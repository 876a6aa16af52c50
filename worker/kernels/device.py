"""What layers ask of a device that has kernels of its own: made once, when a model is built for it.

The CPU is none of these: there, layers use torch and the library in C (cpu/library.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .activation import Activation
from .lora import AdapterRows, Product, Update
from .matmul import Matrix
from .matrices import Matrices
from .native_attention import HeadNorms
from .paged_kv import PagedKV


class NormKernel(Protocol):
    def __call__(self, x: Tensor, add: Tensor | None) -> Tensor:
        """[…, size] → the same, plus `add` if given"""


class Projection(Protocol):
    def __call__(
        self,
        x: Tensor,
        matrix: Matrix,
        norm: NormKernel | None,
        activation: Activation | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x [tokens, K] → activation(matrix · norm(x)), without what is None; an activation of the device's
        own. Nothing is rounded between where it is one kernel."""


class AttentionKernel(Protocol):
    """All between one layer's two projections: norms of heads, rotation, KV write, attention."""

    def __call__(self, qkv: Tensor, kv: PagedKV, step: Any, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """qkv [tokens, heads + 2 * kv heads, head_dim] in one piece; `step` is what the device's own planner
        made for the layer; cos and sin [tokens, 1, rotary_dim] → [tokens, heads * head_dim]"""


class Routing(NamedTuple):
    """What becomes of a router's softmax: the `top_k` likeliest experts, whose weights sum to 1 or not."""

    top_k: int
    renormalize: bool


class ExpertsKernel(Protocol):
    def __call__(self, x: Tensor, router: Matrix, norm: NormKernel | None, add: Tensor | None) -> Tensor:
        """x [tokens, size] → add + the weighted sum of what each token's experts make of norm(x), without
        what is None"""


class DeviceKernels(Protocol):
    """Tensors that are given are on the device, or are moved there."""

    @property
    def device(self) -> torch.device: ...

    @property
    def matrices(self) -> Matrices: ...

    def check_cache(self, stored: torch.dtype) -> None:
        """Raises StartupError for a KV cache of a type that no kernel here reads."""

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> NormKernel:
        """LayerNorm with a bias, else RMSNorm."""

    def activation(self, function: Activation) -> Activation: ...

    @property
    def project(self) -> Projection: ...

    def attention(self, num_heads: int, scale: float, norms: HeadNorms | None) -> AttentionKernel: ...

    def lora(self, segments: Sequence[int], updates: Sequence[Update], rows: AdapterRows) -> Product:
        """Of a matrix with segments of so many rows: what each adapter adds to them, which it takes over."""

    def check_experts(self, blocks: tuple[int, int] | None) -> None:
        """Raises StartupError for experts that have scales of such blocks; None: of rows or groups."""

    def experts(
        self, gate_up: Sequence[Matrix], down: Sequence[Matrix], activation: Activation, routing: Routing
    ) -> ExpertsKernel:
        """Of all experts' matrices, which it copies; `activation` is the device's own. Raises StartupError
        for matrices that cannot be stacked."""
