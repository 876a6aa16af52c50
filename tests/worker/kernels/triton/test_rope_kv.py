import math

import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.paged_kv import PagedKV
from worker.kernels.triton.rope_kv import HeadNorms, reference, rope_kv

BLOCKS = 3


def table(rotary_dim: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    angle = torch.rand(64, rotary_dim // 2) * 6
    cos, sin = angle.cos(), angle.sin()
    both = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
    return both.to(device, dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (3, 3)])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (80, 32), (128, 128), (64, 0)])
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_normed_rotated_and_written(
    heads: int,
    kv_heads: int,
    dim: int,
    rotary_dim: int,
    normed: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    tokens = 2
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim).to(device, dtype)
    positions = torch.tensor([63, 17], device=device)
    slots = torch.tensor([16 + 15, 0], device=device)
    angles = table(rotary_dim, device, dtype) if rotary_dim else None
    norms = None
    if normed:
        norms = HeadNorms(torch.randn(dim).to(device, dtype), torch.randn(dim).to(device, dtype), 1e-6)
    caches = [
        torch.full((2, BLOCKS, kv_heads, 16, dim), math.nan, dtype=dtype, device=device) for _ in range(2)
    ]
    found = rope_kv(qkv, positions, slots, angles, PagedKV(caches[0]), heads, norms)
    expected = reference(qkv, positions, slots, angles, PagedKV(caches[1]), heads, norms)
    close(found, expected)
    assert torch.equal(caches[0].isnan(), caches[1].isnan()), "nothing else was written"
    close(caches[0].nan_to_num(), caches[1].nan_to_num())


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_quantized_caches(stored: torch.dtype, device: torch.device) -> None:
    heads, kv_heads, dim = 2, 2, 80
    qkv = torch.randn(3, heads + 2 * kv_heads, dim, device=device)
    qkv[1, 2] = 0  # a key without any amplitude
    qkv[2, 4, 3], qkv[2, 5, 70] = math.nan, math.inf
    positions, slots = torch.tensor([0, 1, 2], device=device), torch.tensor([3, 40, 16], device=device)
    kvs = [
        PagedKV(
            torch.zeros(2, BLOCKS, kv_heads, 16, dim, device=device).to(stored),
            torch.zeros(2, BLOCKS, kv_heads, 16, device=device),
        )
        for _ in range(2)
    ]
    angles = table(dim, device, torch.float32)
    rope_kv(qkv, positions, slots, angles, kvs[0], heads)
    reference(qkv, positions, slots, angles, kvs[1], heads)
    assert kvs[0].scales is not None
    assert kvs[1].scales is not None
    torch.testing.assert_close(kvs[0].scales, kvs[1].scales, rtol=1e-6, atol=0, equal_nan=True)
    finite = kvs[1].scales.isfinite()
    found, expected = kvs[0].cache.float()[finite], kvs[1].cache.float()[finite]
    assert float((found - expected).abs().max()) <= (1 if stored == torch.int8 else 32), "one step"
    assert float((found != expected).float().mean()) < 0.01, "only ties round differently"
