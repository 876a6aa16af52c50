"""Norms of a model in transformers' code, which become ours, in C, where they compute the same.

transformers has some 200 classes of them, most of which are one of three kinds. Which one is tried, on rows
of several sizes, once the weights are there: names do not tell (Gemma's RMSNorm adds 1 to its weight).
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.cpu.library import Library
from ..kernels.rows import RowNorm

_EPS = ("eps", "variance_epsilon", "epsilon")
_SPREADS = (1e-3, 1.0, 30.0)
"""Of the rows that are tried: eps matters to the first."""
_EXACT, _ROUNDED = 1e-5, 2e-2
"""How far apart results may be, of each number's size: in float32, and in types of 16 bits, which some norms
round to before they multiply by their weight."""


class _Ours(nn.Module):
    norm: RowNorm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, None)


def replace_norms(model: nn.Module, kernels: Library) -> None:
    """Its weights are there. Classes are changed in place, as of linear layers."""
    for layer in list(model.modules()):
        found = _ours(layer, kernels) if "Norm" in type(layer).__name__ else None
        if found is not None:
            vars(layer)["norm"], layer.__class__ = found, _Ours


def _ours(layer: Any, kernels: Library) -> RowNorm | None:
    """One that computes the same, if there is one."""
    parameters = dict(layer.named_parameters())
    weight, bias = parameters.pop("weight", None), parameters.pop("bias", None)
    eps = next((value for name in _EPS if isinstance(value := getattr(layer, name, None), float)), None)
    takes = inspect.signature(layer.forward).parameters
    if weight is None or weight.dim() != 1 or parameters or eps is None or len(takes) != 1:
        return None
    size = len(weight)
    if not size or not RowNorm.supports(size):
        return None
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(len(_SPREADS), size, generator=draw) * torch.tensor(_SPREADS)[:, None] + 0.1
    x = rows.to(weight.dtype)
    theirs: Tensor = layer(x)
    for centred in (False, True):
        for scales in (weight.data, weight.data.float() + 1):
            norm = RowNorm(kernels, scales, None if bias is None else bias.data, eps, centred=centred)
            if _alike(theirs, norm(x, None)):
                return norm
    return None


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    if theirs.dtype != ours.dtype:
        return False
    tolerance = _EXACT if ours.dtype == torch.float32 else _ROUNDED
    return torch.allclose(theirs.float(), ours.float(), rtol=tolerance, atol=tolerance)
