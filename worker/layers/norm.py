"""RMSNorm (Zhang and Sennrich, 2019): x / sqrt(mean(x²) + eps) · weight, computed in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import Scope


class RMSNorm:
    def __init__(self, scope: Scope, size: int, eps: float) -> None:
        self.shape = (size,)
        self.eps = eps
        self.weight = torch.empty(size, dtype=scope.dtype)
        scope.want("weight", self.shape, self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)
