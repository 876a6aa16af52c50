"""A mixture of experts: each token's network is the weighted sum of the few that a router picks for it.

    router  p = softmax(W x) in float32; the k largest, and their weights (made to sum to 1 or not)
    tokens  sorted by expert, so that each expert multiplies all its tokens at once

Ranks split every expert's inner dimension, so all have the same work, and sum once at the end. Each expert
multiplies by linear methods of its own, as any other layer: so it is packed for oneDNN, and quantized, as
those are. One token through 8 experts of Qwen3-30B-A3B's size in bfloat16, on one core: 9.5 ms, against
12.3 from one stacked tensor, which cannot be packed (16 tokens: 27 against 36). A device with kernels of its
own gets a layer's experts stacked as soon as they are loaded, and multiplies all of them in one launch.
"""

from collections.abc import Sequence

from torch import Tensor

from protocol.errors import StartupError

from ..kernels.device import DeviceKernels, ExpertsKernel, Routing
from ..parallel import Group, whole
from ..weights import Scope
from .experts import mix
from .linear import ColumnLinear, Weight
from .mlp import GatedMLP
from .norm import Norm


class SparseMLP:
    def __init__(
        self,
        scope: Scope,
        size: int,
        group: Group,
        experts: Sequence[GatedMLP],
        top_k: int,
        *,
        renormalize: bool,
    ) -> None:
        """The router is `gate` below `scope`; each expert gives this rank's part of its sum. `renormalize`:
        the weights of the chosen sum to 1. Raises StartupError for what a device has no kernel for."""
        self.group = group
        self.experts = experts
        self.top_k = top_k
        self.renormalize = renormalize
        self.gate = ColumnLinear(scope, size, {"gate": [whole(len(experts))]}, role="router")
        self.on_device: ExpertsKernel | None = None
        if (device := scope.device) is not None:
            for weights in zip(*map(_weights, experts), strict=True):
                _check(weights, scope.formats.name, device)
            scope.request((), lambda _: self._stack(device), 0)  # when those before it are there

    def __call__(self, x: Tensor, residual: Tensor, norm: Norm | None = None) -> Tensor:
        """[tokens, size] → residual + mlp(norm(x))"""
        if self.on_device is not None:
            fused = None if norm is None else norm.fused
            add = residual if self.group.rank == 0 else None
            return self.group.all_reduce(self.on_device(x, self.gate.weight.matrix, fused, add))
        x = x if norm is None else norm(x)
        weights, chosen = self.gate(x).float().softmax(-1).topk(self.top_k)
        if self.renormalize:
            weights /= weights.sum(-1, keepdim=True)
        mixed = mix(x, weights, chosen, len(self.experts), lambda e, rows: self.experts[e](rows))
        return self.group.all_reduce(mixed).add_(residual)

    def _stack(self, device: DeviceKernels) -> None:
        gate_up, down = zip(*map(_weights, self.experts), strict=True)
        self.on_device = device.experts(
            [weight.take() for weight in gate_up],
            [weight.take() for weight in down],
            self.experts[0].activation,
            Routing(self.top_k, self.renormalize),
        )
        self.experts = ()  # they are there once


def _weights(expert: GatedMLP) -> tuple[Weight, Weight]:
    return expert.gate_up_proj.weight, expert.down_proj.weight


def _check(weights: Sequence[Weight], name: str, device: DeviceKernels) -> None:
    """The same matrix of all experts. Raises StartupError for what cannot be stacked on a device."""
    first = weights[0].formats[0]
    if any(form != first for weight in weights for form in weight.formats):
        raise StartupError(
            f"experts ({name}) whose weights are not all stored in one way have no kernel for GPUs",
            hint="use another checkpoint, or --device cpu",
        )
    if first.combined:
        raise StartupError(
            f"experts ({name}) with groups of 8-bit weights, or of scattered columns (desc_act, actorder), "
            "have no kernel for GPUs; 8 bits with scales of rows and 4 bits in groups have",
            hint="use another checkpoint, or --device cpu",
        )
    for cut in weights[0].cuts:
        device.check_experts(blocks := first.blocks(cut))
        if blocks is not None and cut is not weights[0].cuts[-1] and cut.rows.length % blocks[0]:
            raise StartupError(
                f"{cut.name!r}: {cut.rows.length} rows of an expert do not end with a block of {blocks[0]} "
                "rows that share a scale, which has no kernel for GPUs",
                hint="use a smaller --tensor-parallel-size, another checkpoint, or --device cpu",
            )
