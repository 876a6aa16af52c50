"""Linear layers of a model in transformers' code, which become ours: their matrices are packed, quantized and
kept for the next worker as all others are (layers/linear.py).

    nn.Linear, Conv1D ─ made ─▶ watched: in the trace it knows its shape, and notices who reads its weights
                      ─ take ─▶ ours, with a Weight; or its own again

Only a layer that is called, and nothing else, can be another one without the model's code knowing. One whose
weights are read by others, tied to others, or of another type than the model's stays torch's.
"""

import re
import sys
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from protocol.errors import StartupError

from ..layers.linear import Weight
from ..parallel import whole
from ..quantization.format import Role
from ..weights import Wants

_NUMBER = re.compile(r"\.\d+(?=\.)")
_ROUTER = re.compile(r"(^|[._])(gate|router)($|\.)")
"""Names of layers that decide where a token goes, or how much of it."""


class _Watched(nn.Module):
    """What a layer is until the trace is over."""

    num_rows: int
    is_read = False

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], self.num_rows)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            self.is_read = True
        return super().__getattr__(name)


class _Ours(nn.Module):
    """What it is from then on."""

    num_rows: int
    product: Weight

    def forward(self, x: Tensor) -> Tensor:
        """[…, columns] → […, rows]"""
        return self.product.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.num_rows)


class Linears:
    """Those of one model that is without memory. Classes are changed in place, so that whoever holds a layer
    holds what it becomes."""

    def __init__(self, model: nn.Module) -> None:
        """From now on all are watched."""
        self._kinds: dict[str, type[nn.Module]] = {}
        """By name, what they were. A subclass computes something else."""
        self._ours: list[nn.Module] = []
        for name, layer in model.named_modules():
            if type(layer) in (nn.Linear, Conv1D):
                self._kinds[name] = type(layer)
                layer.num_rows = layer.weight.shape[type(layer) is Conv1D]
                layer.__class__ = _Watched

    def take(self, model: Any, used: Container[nn.Module], wants: Wants) -> set[str]:
        """After the trace: make those ours that can be. `used`: what text goes through. Returns the names of
        the tensors that are theirs."""
        tied: dict[str, str] = model.all_tied_weights_keys
        lent = set(tied.values())
        taken: set[str] = set()
        for name, kind in self._kinds.items():
            layer: Any = model.get_submodule(name)
            is_read, layer.__class__ = layer.is_read, kind
            own = {f"{name}.{leaf}": tensor for leaf, tensor in layer.named_parameters()}
            place, role, shared = (
                name,
                _role(name, layer is model.get_output_embeddings()),
                lent | tied.keys(),
            )
            if role == "head" and layer.bias is None and f"{name}.weight" in tied:
                place, role, shared = tied[f"{name}.weight"].removesuffix(".weight"), "tied head", lent
            if (
                is_read
                or layer not in used
                or own.keys() & shared
                or not can_be_ours(model, own, wants.dtype)
            ):
                continue
            transposed = kind is Conv1D
            rows, columns = layer.weight.shape[:: -1 if transposed else 1]
            layer.product = Weight(
                [(wants.scope(f"{place}."), [whole(rows)])],
                whole(columns),
                bias=layer.bias is not None,
                transposed=transposed,
                role=role,
            )
            layer.__class__ = _Ours
            self._ours.append(layer)
            taken.update(own)
        return taken

    def loaded(self) -> None:
        """Whatever still reads weights of ours fails."""
        for layer in self._ours:
            layer._parameters.clear()


def can_be_ours(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
    """Whether all are of the model's type. `tensors` by name."""
    in_float32 = kept_in_float32(model, dtype)
    return all(t.dtype == dtype and not in_float32.search(name) for name, t in tensors.items())


def kept_in_float32(model: Any, dtype: torch.dtype) -> re.Pattern[str]:
    """Names of tensors that a model in this type does not want in it."""
    return re.compile("|".join(model._get_dtype_plan(dtype)) or "(?!)")


def name_others(model: Any, used: Container[nn.Module], taken: Container[str], scheme: str) -> None:
    """Say which matrices stay as they are. Raises StartupError if these are all."""
    others = {
        _NUMBER.sub(".*", f"{path}.{leaf}"): None
        for path, module in model.named_modules()
        if module in used and not isinstance(module, nn.Embedding) and not _ROUTER.search(path)
        for leaf, tensor in module.named_parameters(recurse=False)
        if tensor.dim() > 1 and f"{path}.{leaf}" not in taken
    }
    if not taken:
        raise StartupError(
            f"--quantization {scheme}: its code calls no linear layer that can be quantized",
            hint="leave --quantization out",
        )
    if others:
        why = "as the model's code does not only call them"
        print(
            f"tern: --quantization {scheme} leaves as they are, {why}: {', '.join(others)}",
            file=sys.stderr,
            flush=True,
        )


def _role(name: str, is_head: bool) -> Role:
    if is_head:
        return "head"
    return "router" if _ROUTER.search(name) else "linear"
