import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import experts

EXPERTS, N, K = 5, 70, 80


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 2), (3, 1), (24, 2)])
def test_each_token_gets_its_experts(
    tokens: int, top_k: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Some experts get nothing, and one may get all."""
    x, weight = torch.randn(tokens, K).to(device, dtype), torch.randn(EXPERTS, N, K).to(device, dtype)
    chosen = torch.stack([torch.randperm(3)[:top_k] for _ in range(tokens)]).to(device)
    routing = experts.route(chosen, EXPERTS)
    assert routing.starts.tolist()[-3:] == [tokens * top_k] * 3
    found = experts.expert_matmul(x, weight, routing, top_k)
    expected = experts.expert_matmul_reference(x, weight, chosen)
    close(found, expected)
    back = torch.randn(EXPERTS, K, N).to(device, dtype)
    again = experts.expert_matmul(expected, back, routing, top_k)
    close(again, experts.expert_matmul_reference(expected, back, chosen), 2)
    weights = torch.rand(tokens, top_k, device=device)
    close(experts.combine(again, weights, x), experts.combine_reference(again, weights, x))


@pytest.mark.parametrize("wtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_eight_bits(wtype: torch.dtype, device: torch.device) -> None:
    x, scales = torch.randn(3, K).to(device, torch.float16), (torch.rand(EXPERTS, N) * 0.01).to(device)
    weight = (torch.randn(EXPERTS, N, K) * 30).clamp(-127, 127).to(wtype).to(device)
    chosen = torch.tensor([[4, 0], [0, 1], [4, 3]], device=device)
    found = experts.expert_matmul(x, weight, experts.route(chosen, EXPERTS), 2, scales)
    close(found, experts.expert_matmul_reference(x, weight, chosen, scales), 2)
