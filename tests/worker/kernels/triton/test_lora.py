import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.lora import AdapterRows, Factors, TorchProduct
from worker.kernels.triton import lora


def test_each_token_has_its_own_adapter_or_none(device: torch.device, dtype: torch.dtype) -> None:
    rank, k, n = 16, 200, 150
    x, y = torch.randn(4, k).to(device, dtype), torch.randn(4, n).to(device, dtype)
    a, b = torch.randn(3, 2, rank, k).to(device, dtype), torch.randn(3, n, rank).to(device, dtype)
    segment_of = (torch.arange(n, device=device) >= 70).int()
    adapters = torch.tensor([2, -1, 0, 2], dtype=torch.int32, device=device)
    scales = torch.tensor([[0.5, 0.25], [1.0, 2.0], [0.01, 0.02]], device=device)
    found, expected = y.clone(), y.clone()
    lora.add_lora(x, a, b, segment_of, adapters, scales, found)
    lora.reference(x, a, b, segment_of, adapters, scales, expected)
    close(found, expected)
    assert torch.equal(found[1], y[1])


def test_a_product_of_adapters_of_several_ranks(device: torch.device, dtype: torch.dtype) -> None:
    """As torch computes it; the second adapter leaves the first segment as it is."""
    segments, k = [40, 23], 72
    updates = [
        [
            Factors(torch.randn(r, k).to(dtype), torch.randn(n, r).to(dtype), 0.5 / r) if r else None
            for r, n in zip(ranks, segments, strict=True)
        ]
        for ranks in ((3, 20), (0, 8))
    ]
    x, y = torch.randn(5, k).to(dtype), torch.randn(5, sum(segments)).to(dtype)
    rows = AdapterRows()
    rows.numbers, rows.some = torch.tensor([1, 0, -1, 0, 1], dtype=torch.int32), True
    expected, found = y.clone(), y.clone().to(device)
    TorchProduct(segments, updates, rows).add_to(expected, x)
    rows.numbers = rows.numbers.to(device)
    lora.TritonProduct(segments, updates, rows, device).add_to(found, x.to(device))
    close(found, expected.to(device))
    assert torch.equal(found[2].cpu(), y[2])
