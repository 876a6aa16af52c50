import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import int4_matmul
from worker.kernels.triton.gemv import RowNorm
from worker.kernels.triton.int4_gemv import int4_gemv, reference


@pytest.mark.parametrize(("k", "group"), [(128, 128), (192, 64), (160, 32), (96, 96), (200, 200), (4160, 32)])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_one_row(k: int, group: int, with_zeros: bool, device: torch.device, dtype: torch.dtype) -> None:
    n, groups = 6, -(-k // group)
    packed = int4_matmul.pack(torch.randint(0, 16, (n, k), dtype=torch.uint8)).to(device)
    scales = (torch.rand(n, groups) * 0.1 + 0.01).to(device)
    zeros = torch.randint(0, 16, (n, groups)).float().to(device) if with_zeros else None
    x, add = torch.randn(1, k).to(device, dtype), torch.randn(1, n).to(device, dtype)
    bias = torch.randn(n).to(device, dtype)
    found = int4_gemv(x, packed, scales, zeros, group, bias=bias, add=add)
    close(found, reference(x, packed, scales, zeros, group, bias=bias, add=add), 2)


@pytest.mark.parametrize(("gated", "gelu"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("group", [128, 32])
def test_what_stands_around_a_product(gated: bool, gelu: bool, group: int, device: torch.device) -> None:
    n, k = 10, 384
    packed = int4_matmul.pack(torch.randint(0, 16, (n, k), dtype=torch.uint8)).to(device)
    scales = (torch.rand(n, k // group) * 0.02).to(device)
    x, bias = torch.randn(1, k).to(device, torch.float16), torch.randn(n, device=device)
    norm = RowNorm(torch.randn(k, device=device), 1e-6)
    found = int4_gemv(x, packed, scales, None, group, norm=norm, bias=bias, gated=gated, gelu=gelu)
    close(found, reference(x, packed, scales, None, group, norm=norm, bias=bias, gated=gated, gelu=gelu), 2)
