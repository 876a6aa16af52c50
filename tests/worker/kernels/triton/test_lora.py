import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import lora


def test_each_token_has_its_own_adapter_or_none(device: torch.device, dtype: torch.dtype) -> None:
    rank, k, n = 16, 200, 150
    x, y = torch.randn(4, k).to(device, dtype), torch.randn(4, n).to(device, dtype)
    a, b = torch.randn(3, rank, k).to(device, dtype), torch.randn(3, n, rank).to(device, dtype)
    adapters = torch.tensor([2, -1, 0, 2], dtype=torch.int32, device=device)
    scales = torch.tensor([0.5, 1.0, 0.01], device=device)
    found, expected = y.clone(), y.clone()
    lora.add_lora(x, a, b, adapters, scales, found)
    lora.reference(x, a, b, adapters, scales, expected)
    close(found, expected)
    assert torch.equal(found[1], y[1])
