"""Norms of models in transformers' own code are ours where they compute the same."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tests.worker import native
from worker.models.transformers_norm import replace_norms

SIZE = 40


class HalfNorm(Qwen3RMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        half: Tensor = super().forward(hidden_states) / 2
        return half


class GatedNorm(Qwen3RMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        normed: Tensor = super().forward(hidden_states)
        return normed if gate is None else normed * gate


def made(kind: type[nn.Module], dtype: torch.dtype) -> nn.ModuleList:
    torch.manual_seed(1)
    norm = kind(SIZE, eps=1e-5).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_()
    return nn.ModuleList([norm.to(dtype)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Qwen3RMSNorm, Olmo2RMSNorm, Gemma2RMSNorm, nn.LayerNorm, nn.RMSNorm])
def test_known_ones_are_replaced(kind: type[nn.Module], dtype: torch.dtype) -> None:
    layers = made(kind, dtype)
    x = torch.randn(2, 3, SIZE).to(dtype)
    expected = layers[0](x)
    replace_norms(layers, native.kernels())
    assert not isinstance(layers[0], kind)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(layers[0](x), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [HalfNorm, GatedNorm])
def test_others_stay(kind: type[nn.Module]) -> None:
    layers = made(kind, torch.float32)
    replace_norms(layers, native.kernels())
    assert type(layers[0]) is kind
