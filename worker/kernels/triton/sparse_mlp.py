"""A mixture of experts as its layer calls it: ExpertsKernel of ../device.py.

    one token    router with the norm · pick · gate and up with the norm and the activation · down · sum
    more         norm · router · pick · sort · gate and up · activation · down · sum

so five launches for one and eight for any number, whatever the weights are. What a router says is float32;
for one token, what its experts say is, too, until it is summed. Activations are never rounded to 8 bits.
Where a row's numbers must not depend on its company, one token takes the way of more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.errors import StartupError

from ..activation import Activation
from ..device import NormKernel, Routing
from ..matmul import Matrix
from . import int4_matmul
from .experts import ExpertWeights, combine, expert_matmul
from .gemv import RowNorm, gemv
from .int4_gemv import int4_gemv
from .matrices import TritonDense, TritonFP8, TritonInt4, TritonInt8
from .projection import TritonActivation, TritonNorm, project
from .routing import pick, sort


class TritonExperts:
    """ExpertsKernel."""

    def __init__(
        self,
        gate_up: Sequence[Matrix],
        down: Sequence[Matrix],
        activation: Activation,
        routing: Routing,
        *,
        invariant: bool,
        pdl: bool,
    ) -> None:
        assert isinstance(activation, TritonActivation)
        self._gate_up, self._down = stacked(gate_up), stacked(down)
        self._activation, self._routing = activation, routing
        self._invariant, self._pdl = invariant, pdl

    def __call__(self, x: Tensor, router: Matrix, norm: NormKernel | None, add: Tensor | None) -> Tensor:
        one_row = len(x) == 1 and not self._invariant
        before: RowNorm | None = None
        if one_row and isinstance(norm, TritonNorm) and norm.bias is None:
            before = RowNorm(norm.weight, norm.eps)
        elif norm is not None:
            x, norm = norm(x, None), None
        x = x.contiguous()
        logits = project(x, router, norm, None, torch.float32)
        top_k = self._routing.top_k
        weights, chosen = pick(logits, top_k, renormalize=self._routing.renormalize)
        add = None if add is None else add.contiguous()
        if one_row:
            gate = self._activation
            inner = self._product(x, self._gate_up, chosen, before, gated=True, gelu=gate.gelu)
            return combine(self._product(inner, self._down, chosen), weights, add, x.dtype)
        order = sort(chosen, len(self._down.stored))
        inner = self._activation(expert_matmul(x, self._gate_up, order, top_k, invariant=self._invariant))
        return combine(
            expert_matmul(inner, self._down, order, top_k, invariant=self._invariant), weights, add
        )

    def _product(
        self,
        x: Tensor,
        matrix: ExpertWeights,
        chosen: Tensor,
        norm: RowNorm | None = None,
        *,
        gated: bool = False,
        gelu: bool = False,
    ) -> Tensor:
        """Of one token by each of its experts, or of what each of them made."""
        out_dtype = x.dtype if gated else torch.float32
        if matrix.group and matrix.scales is not None:
            return int4_gemv(
                x, matrix.stored, matrix.scales, matrix.zeros, matrix.group, norm=norm, gated=gated,
                gelu=gelu, out_dtype=out_dtype, pdl=self._pdl, chosen=chosen,
            )  # fmt: skip
        return gemv(
            x, matrix.stored, w_scales=matrix.scales, norm=norm, gated=gated, gelu=gelu,
            out_dtype=out_dtype, pdl=self._pdl, chosen=chosen,
        )  # fmt: skip


def stacked(matrices: Sequence[Matrix]) -> ExpertWeights:
    """One of each expert. Raises StartupError for matrices of several kinds, or of ones that are combined."""
    dense, int8, fp8, int4 = list[Tensor](), list[TritonInt8](), list[TritonFP8](), list[TritonInt4]()
    for matrix in matrices:
        match matrix:
            case TritonDense():
                dense.append(matrix.weight)
            case TritonInt8():
                int8.append(matrix)
            case TritonFP8():
                fp8.append(matrix)
            case TritonInt4():
                int4.append(matrix)
    if len(matrices) not in (len(dense), len(int8), len(fp8), len(int4)):
        raise StartupError(
            "experts whose matrices are combined, or not all of one kind, have no kernel for GPUs",
            hint="use another checkpoint, or --device cpu",
        )
    if dense:
        return ExpertWeights(torch.stack(dense))
    if int4:
        zeros = None
        if any(one.zeros is not None for one in int4):
            none = torch.full_like(int4[0].scales, int4_matmul.ZERO)
            zeros = torch.stack([none if one.zeros is None else one.zeros for one in int4])
        scales = torch.stack([one.scales for one in int4])
        return ExpertWeights(torch.stack([one.packed for one in int4]), scales, zeros, int4[0].group)
    eight = int8 or fp8
    return ExpertWeights(
        torch.stack([one.weight for one in eight]), torch.stack([one.scales for one in eight])
    )
