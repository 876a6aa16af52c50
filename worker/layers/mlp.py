"""The gated feed-forward network: down(act(gate x) · up x), split over ranks by its inner dimension."""

from collections.abc import Callable

from torch import Tensor

from ..kernels.activation import silu_and_multiply
from ..kernels.rows import fused as fused_activation
from ..parallel import Group, Span
from ..weights import Scope
from .linear import ColumnLinear, RowLinear
from .norm import Norm


class GatedMLP:
    def __init__(
        self,
        scope: Scope,
        size: int,
        inner: Span,
        group: Group,
        *,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = silu_and_multiply,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        fused: str | None = None,
    ) -> None:
        """`fused` names the one matrix that holds gate and up in some checkpoints. Pass a group of one as
        `group` for the rank's own part of the sum."""
        gate, up, down = names
        merged = {fused: [inner, inner]} if fused else {gate: [inner], up: [inner]}
        self.activation = fused_activation(activation, scope.kernels, scope.device)
        self.gate_up_proj = ColumnLinear(scope, size, merged, bias=bias)
        self.down_proj = RowLinear(scope, down, inner, size, group, bias=bias)

    def __call__(self, x: Tensor, residual: Tensor | None = None, norm: Norm | None = None) -> Tensor:
        """[tokens, size] → residual + mlp(norm(x))"""
        return self.down_proj(self.gate_up_proj(x, norm, self.activation), residual)
