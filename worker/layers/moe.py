"""A mixture of experts: each token's network is the weighted sum of the few that a router picks for it.

    router  p = softmax(W x) in float32; the k largest, and their weights (made to sum to 1 or not)
    tokens  sorted by expert, so that each expert multiplies all its tokens at once

Ranks split every expert's inner dimension, so all have the same work, and sum once at the end. Each expert
multiplies by linear methods of its own, as any other layer: so it is packed for oneDNN, and quantized, as
those are. One token through 8 experts of Qwen3-30B-A3B's size in bfloat16, on one core: 9.5 ms, against
12.3 from one stacked tensor, which cannot be packed (16 tokens: 27 against 36). A device with kernels of its
own gets the experts stacked once they are loaded, and multiplies all of them in one launch.
"""

from collections.abc import Sequence

from torch import Tensor

from protocol.errors import StartupError

from ..kernels.device import DeviceKernels, ExpertsKernel
from ..parallel import Group, whole
from ..weights import Scope
from .experts import mix
from .linear import ColumnLinear
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
            if scope.formats.name != "none":
                raise StartupError(
                    f"experts with {scope.formats.name} weights have no kernel for GPUs; others have",
                    hint="use an unquantized checkpoint without --quantization, or --device cpu",
                )
            scope.after_loading(lambda: self._stack(device))

    def __call__(self, x: Tensor, residual: Tensor, norm: Norm | None = None) -> Tensor:
        """[tokens, size] → residual + mlp(norm(x))"""
        x = x if norm is None else norm(x)
        weights, chosen = self.gate(x).float().softmax(-1).topk(self.top_k)
        if self.renormalize:
            weights /= weights.sum(-1, keepdim=True)
        if self.on_device is not None:
            return self.group.all_reduce(self.on_device(x, weights, chosen)).add_(residual)
        mixed = mix(x, weights, chosen, len(self.experts), lambda e, rows: self.experts[e](rows))
        return self.group.all_reduce(mixed).add_(residual)

    def _stack(self, device: DeviceKernels) -> None:
        self.on_device = device.experts(
            [expert.gate_up_proj.weight.matrix for expert in self.experts],
            [expert.down_proj.weight.matrix for expert in self.experts],
            self.experts[0].activation,
        )
        self.experts = ()  # they are there once
