"""Linear layers of a model in transformers' code, which become ours: their matrices are packed, quantized and
kept for the next worker as all others are (layers/linear.py).

    nn.Linear, Conv1D ─ made ─▶ watched: in the trace it knows its shape, and notices who reads its weights
                      ─ take ─▶ ours, with a part of a Weight; or its own again

Only a layer that is called, and nothing else, can be another one without the model's code knowing. One whose
weights are read by others, tied to others, or of another type than the model's stays torch's. Neighbours that
are given the same tensor (q, k and v; gate and up) are one matrix.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

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
    inputs: list[tuple[Tensor, int]]
    """Of each call: what it was given, and how often that had been written to."""
    is_read = False

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append((x, x._version))
        return x.new_empty(*x.shape[:-1], self.num_rows)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            self.is_read = True
        return super().__getattr__(name)


class _Ours(nn.Module):
    """What it is from then on."""

    number: int
    product: "_Product"

    def forward(self, x: Tensor) -> Tensor:
        """[…, columns] → […, rows]"""
        return self.product.part(self.number, x)


class _Product:
    """Of layers that are given the same tensor, as one matrix: who is called first multiplies for all."""

    def __init__(self, weight: Weight, rows: list[int]) -> None:
        self._weight, self._rows = weight, rows
        self._x: Tensor | None = None
        self._left: dict[int, Tensor] = {}
        """Parts of the product with `_x` that are not yet asked for, by number."""

    def part(self, number: int, x: Tensor) -> Tensor:
        if x is not self._x or number not in self._left:
            y = self._weight.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], sum(self._rows))
            self._x, self._left = x, dict(enumerate(torch.split_with_sizes(y, self._rows, -1)))
        found = self._left.pop(number)
        if not self._left:
            self._x = None
        return found


class _Taken(NamedTuple):
    """A layer that becomes ours."""

    layer: Any
    place: str
    """Of its matrix."""
    role: Role
    transposed: bool


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
                layer.num_rows, layer.inputs = layer.weight.shape[type(layer) is Conv1D], []
                layer.__class__ = _Watched

    def take(self, model: Any, used: Container[nn.Module], wants: Wants) -> set[str]:
        """After the trace: make those ours that can be. `used`: what text goes through. Returns the names of
        the tensors that are theirs."""
        tied: dict[str, str] = model.all_tied_weights_keys
        lent = set(tied.values())
        names: set[str] = set()
        together: dict[object, list[_Taken]] = defaultdict(list)
        for name, kind in self._kinds.items():
            layer: Any = model.get_submodule(name)
            is_read, layer.__class__ = layer.is_read, kind
            own = {f"{name}.{leaf}": tensor for leaf, tensor in layer.named_parameters()}
            place, role, shared = name, _role(name), lent | tied.keys()
            if layer is model.get_output_embeddings():
                role = "head"
                if layer.bias is None and f"{name}.weight" in tied:
                    place, role, shared = tied[f"{name}.weight"].removesuffix(".weight"), "tied head", lent
            if (
                layer in used
                and not is_read
                and not own.keys() & shared
                and can_be_ours(model, own, wants.dtype)
            ):
                together[_given(name, layer, role)].append(_Taken(layer, place, role, kind is Conv1D))
                names.update(own)
        for layers in together.values():
            self._replace(layers, wants)
        return names

    def _replace(self, taken: list[_Taken], wants: Wants) -> None:
        """By one product."""
        first, transposed, rows = taken[0].layer, taken[0].transposed, [one.layer.num_rows for one in taken]
        weight = Weight(
            [(wants.scope(f"{one.place}."), [whole(n)]) for one, n in zip(taken, rows, strict=True)],
            whole(first.weight.shape[0 if transposed else 1]),
            bias=first.bias is not None,
            transposed=transposed,
            role=taken[0].role,
        )
        product = _Product(weight, rows)
        for number, (layer, *_) in enumerate(taken):
            layer.product, layer.number, layer.__class__ = product, number, _Ours
            self._ours.append(layer)

    def loaded(self) -> None:
        """Whatever still reads weights of ours fails."""
        for layer in self._ours:
            layer._parameters.clear()
            del layer.inputs


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


def _role(name: str) -> Role:
    return "router" if _ROUTER.search(name) else "linear"


def _given(name: str, layer: Any, role: Role) -> object:
    """Equal for neighbours that are given the same tensor, each once."""
    if role != "linear" or len(layer.inputs) != 1:
        return name
    ((x, version),) = layer.inputs
    return name.rpartition(".")[0], id(x), version, type(layer), layer.bias is None
