"""The sum over experts: each token's few, weighted. Knows neither routers nor what an expert computes."""

from collections.abc import Callable

import torch
from torch import Tensor


def mix(
    x: Tensor, weights: Tensor, chosen: Tensor, num_experts: int, compute: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """x [tokens, size]; weights and chosen [tokens, k] → [tokens, size], summed in float32.

    compute(e, rows [n, size]) is what expert e makes of them. Tokens are sorted by expert, so that each
    computes all its tokens at once.
    """
    by_expert = chosen.flatten().argsort(stable=True)
    rows = by_expert // chosen.shape[1]
    inputs, outputs = x[rows], x.new_empty(len(rows), x.shape[1])
    begin = 0
    for expert, count in enumerate(chosen.flatten().bincount(minlength=num_experts).tolist()):
        if count:
            outputs[begin : begin + count] = compute(expert, inputs[begin : begin + count])
            begin += count
    weighted = outputs * weights.flatten()[by_expert].float().unsqueeze(1)
    return torch.zeros(x.shape, device=x.device).index_add_(0, rows, weighted).to(x.dtype)
