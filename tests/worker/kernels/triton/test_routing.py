import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import routing


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 128, 8), (5, 7, 7), (3, 1, 1), (2, 60, 3)])
def test_the_likeliest_are_picked(
    tokens: int, experts: int, top_k: int, renormalize: bool, device: torch.device
) -> None:
    logits = torch.randn(tokens, experts, device=device) * 3
    found = routing.pick(logits, top_k, renormalize=renormalize)
    expected = routing.pick_reference(logits, top_k, renormalize=renormalize)
    assert torch.equal(found.experts, expected.experts)
    close(found.weights, expected.weights)


def test_of_equals_the_first_and_of_no_numbers_some(device: torch.device) -> None:
    logits = torch.zeros(3, 6, device=device)
    logits[1] = torch.nan
    logits[2] = -torch.inf
    weights, experts = routing.pick(logits, 4, renormalize=True)
    assert experts.tolist()[0] == [0, 1, 2, 3]
    assert weights[0].tolist() == [0.25] * 4
    assert weights[1:].isnan().all()
    assert experts.min() >= 0
    assert experts.max() < 6


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (1, 8), (40, 3), (700, 2)])
def test_pairs_are_in_order_of_experts_and_of_tokens(tokens: int, top_k: int, device: torch.device) -> None:
    """Some experts get nothing; more pairs than a program looks at together."""
    chosen = torch.randint(2, 9, (tokens, top_k), device=device).int()
    found, expected = routing.sort(chosen, 11), routing.sort_reference(chosen, 11)
    assert torch.equal(found.pairs, expected.pairs)
    assert torch.equal(found.starts, expected.starts)
