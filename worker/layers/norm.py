"""Norms over the last dimension, computed in float32.

RMSNorm        x / sqrt(mean(x²) + eps) · weight                       (Zhang and Sennrich, 2019)
OffsetRMSNorm  x / sqrt(mean(x²) + eps) · (1 + weight)                 as Gemma's checkpoints store it
LayerNorm      (x - mean(x)) / sqrt(var(x) + eps) · weight + bias      (Ba et al., 2016)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import Scope

Norm = Callable[[Tensor], Tensor]
"""[…, size] → the same"""


class RMSNorm:
    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self.shape = (size,)
        self.eps = eps
        self.weight = torch.empty(size, dtype=scope.dtype)
        scope.want("weight", self.shape, self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class OffsetRMSNorm:
    """Its weight stays in float32: 1 + weight loses what a bfloat16 weight says."""

    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self.shape = (size,)
        self.eps = eps
        self.weight = torch.empty(size)
        scope.want("weight", self.shape, self.weight)
        scope.after_loading(self._convert)

    def __call__(self, x: Tensor) -> Tensor:
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

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
