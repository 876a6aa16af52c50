"""Norms over the last dimension, computed in float32.

RMSNorm        x / sqrt(mean(x²) + eps) · weight                       (Zhang and Sennrich, 2019)
OffsetRMSNorm  x / sqrt(mean(x²) + eps) · (1 + weight)                 as Gemma's checkpoints store it
LayerNorm      (x - mean(x)) / sqrt(var(x) + eps) · weight + bias      (Ba et al., 2016)
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.device import NormKernel
from ..kernels.rows import RowNorm
from ..weights import Scope


class Norm(Protocol):
    fused: NormKernel | None
    """On a device, or in C."""

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """[…, size] → the same, plus `add` if given"""


class RMSNorm:
    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self._create(scope, size, eps, scope.dtype)

    def _create(self, scope: Scope, size: int, eps: float, dtype: torch.dtype) -> None:
        self.shape = (size,)
        self.eps = eps
        self.weight = torch.empty(size, dtype=dtype)
        scope.want("weight", self.shape, self.weight)
        self.fused = _fuse(scope, self.weight, None, eps, centred=False)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if self.fused is not None:
            return self.fused(x, add)
        y = self._norm(x)
        return y if add is None else y + add

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """Its weight stays in float32: 1 + weight loses what a bfloat16 weight says."""

    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self._create(scope, size, eps, torch.float32)
        scope.after_loading(self._convert)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.shape, self.weight, self.eps).to(x.dtype)

    def _convert(self) -> None:
        self.weight += 1


class LayerNorm:
    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self.shape = (size,)
        self.eps = eps
        self.weight = torch.empty(size, dtype=scope.dtype)
        self.bias = torch.empty(size, dtype=scope.dtype)
        scope.want("weight", self.shape, self.weight)
        scope.want("bias", self.shape, self.bias)
        self.fused = _fuse(scope, self.weight, self.bias, eps, centred=True)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if self.fused is not None:
            return self.fused(x, add)
        y = F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return y if add is None else y + add


def _fuse(
    scope: Scope, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool
) -> NormKernel | None:
    if scope.device is not None:
        return scope.device.norm(weight, bias, eps)
    if scope.kernels is None or not RowNorm.supports(len(weight)):
        return None
    return RowNorm(scope.kernels, weight, bias, eps, centred=centred)
