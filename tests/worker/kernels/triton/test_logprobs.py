import pytest
import torch

from worker.kernels.triton import logprobs


@pytest.mark.parametrize(("vocab", "k"), [(50, 1), (200, 5), (129, 20), (64, 32)])
def test_top_logprobs(vocab: int, k: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Equals, impossible tokens, and a last stretch with fewer logits than are asked for."""
    monkeypatch.setattr(logprobs, "STRETCH", 64)
    logits = torch.randn(3, vocab) * 4
    logits[0, :8] = 9.0
    logits[1, ::3] = float("-inf")
    tokens = torch.tensor([4, 1, vocab - 1])
    found = logprobs.top_logprobs(logits.to(device), tokens.to(device), k)
    expected = logprobs.reference(logits, tokens, k)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[2].cpu(), expected[2])
