"""Experts of a model in transformers' code, whose matrices become ours, as those of linear layers do.

transformers keeps the experts of a layer in tensors of three dimensions and leaves how they are computed to a
function that a config names. Ours multiplies one expert's matrices after the other's; what stands between
them (activation, clamps) is the model's.

    gate_up_proj [experts, 2 · inner, size] ─▶ gate_up_proj.0, gate_up_proj.1, …: a Weight each
    down_proj    [experts, size, inner]
"""

from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward

from ..layers.experts import mix
from ..layers.linear import Weight
from ..parallel import whole
from ..weights import Wants
from .transformers_linear import can_be_ours

EXPERTS = "tern"
"""The name of our function."""


class Experts:
    """Those of one model that is without memory."""

    def __init__(self, model: nn.Module) -> None:
        self._found = {name: part for name, part in model.named_modules() if hasattr(part, "is_concatenated")}
        """What may be computed by such a function, by name."""
        self._ours: list[nn.Module] = []
        self.stacks: dict[str, str] = {}
        """Tensors of whole layers, by name → the names of one expert's, with a place for its number."""

    def take(self, model: Any, used: Container[nn.Module], wants: Wants) -> set[str]:
        """After the trace: make those ours that can be. Returns the names of the tensors that are theirs."""
        taken: set[str] = set()
        for name, layer in self._found.items():
            own = {f"{name}.{leaf}": tensor for leaf, tensor in layer.named_parameters(recurse=False)}
            matrices = ["gate_up_proj" if layer.has_gate else "up_proj", "down_proj"]
            biases = [f"{matrix}_bias" for matrix in matrices] if layer.has_bias else []
            known = {f"{name}.{leaf}" for leaf in matrices + biases}
            if layer not in used or own.keys() != known or not can_be_ours(model, own, wants.dtype):
                continue
            for leaf in matrices:
                self.stacks[f"{name}.{leaf}"] = f"{name}.{leaf}.{{}}.weight"
                self.stacks[f"{name}.{leaf}_bias"] = f"{name}.{leaf}.{{}}.bias"
            layer.products = [
                _weights(wants, f"{name}.{leaf}", layer, getattr(layer, leaf).shape) for leaf in matrices
            ]
            self._ours.append(layer)
            taken |= known
        return taken

    def loaded(self) -> None:
        """Whatever still reads weights of ours fails."""
        for layer in self._ours:
            layer._parameters.clear()


def _weights(wants: Wants, name: str, layer: Any, shape: tuple[int, int, int]) -> list[Weight]:
    """Of each expert."""
    count, rows, columns = (shape[0], *shape[:0:-1]) if layer.is_transposed else shape
    return [
        Weight(
            [(wants.scope(f"{name}.{expert}."), [whole(rows)])],
            whole(columns),
            bias=layer.has_bias,
            transposed=layer.is_transposed,
        )
        for expert in range(count)
    ]


def _compute(layer: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """As transformers calls it: x [tokens, size]; chosen and weights [tokens, k] → [tokens, size]"""
    if x.is_meta:
        return x.new_empty(x.shape)
    if not hasattr(layer, "products"):
        theirs: Tensor = batched_mm_experts_forward(layer, x, chosen, weights)
        return theirs
    into, back = layer.products

    def one(expert: int, rows: Tensor) -> Tensor:
        inner = into[expert].multiply(rows)
        y: Tensor = back[expert].multiply(layer._apply_gate(inner) if layer.has_gate else layer.act_fn(inner))
        # transformers 5.17 knows of no experts with a norm
        return layer.post_expert_norm(y) if getattr(layer, "has_post_expert_norm", False) else y

    return mix(x, weights, chosen, len(into), one)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _compute)
