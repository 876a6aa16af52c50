"""A product with what stands around it, as layers call it: norm before, activation after. For one row it is
one launch, if the norm is an RMSNorm and the activation gated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import activation as torch_activation
from ..activation import Activation
from ..device import NormKernel
from ..matmul import Matrix
from .activation import activate
from .gemv import RowNorm
from .matrices import alone
from .norm import norm


@dataclass(frozen=True)
class TritonActivation:
    """An Activation of the device's own."""

    gelu: bool
    gated: bool

    def __call__(self, x: Tensor) -> Tensor:
        return activate(x, gelu=self.gelu, gated=self.gated)


ACTIVATIONS: dict[Activation, TritonActivation] = {
    torch_activation.silu_and_multiply: TritonActivation(gelu=False, gated=True),
    torch_activation.gelu_tanh_and_multiply: TritonActivation(gelu=True, gated=True),
    torch_activation.gelu_tanh: TritonActivation(gelu=True, gated=False),
}
_NONE = TritonActivation(gelu=False, gated=False)


@dataclass(frozen=True)
class TritonNorm:
    """A NormKernel."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor, add: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        other = None if add is None else add.reshape(rows.shape)
        return norm(rows, self.weight, self.eps, bias=self.bias, add=other).view(x.shape)


def project(
    x: Tensor,
    matrix: Matrix,
    norm: NormKernel | None,
    activation: Activation | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A Projection: of one row in one kernel, if its norm is an RMSNorm and its activation gated."""
    one_row = alone(matrix) if len(x) == 1 else None
    before: RowNorm | None = None
    if one_row is not None and isinstance(norm, TritonNorm) and norm.bias is None:
        before, norm = RowNorm(norm.weight, norm.eps), None
    x = x if norm is None else norm(x, None)
    if one_row is None:
        y = matrix.multiply(x, None, out_dtype)
    else:
        gate = activation if isinstance(activation, TritonActivation) and activation.gated else _NONE
        y = one_row(x.contiguous(), norm=before, gated=gate.gated, gelu=gate.gelu, out_dtype=out_dtype)
        activation = None if gate.gated else activation
    return y if activation is None else activation(y)
