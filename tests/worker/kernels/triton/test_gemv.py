import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import matmul, matrices
from worker.kernels.triton.gemv import RowNorm, gemv, reference
from worker.kernels.triton.matrices import TritonMatrices


@pytest.mark.parametrize(("n", "k"), [(6, 64), (9, 700)])
@pytest.mark.parametrize("enough", [1, 132])
def test_one_row(
    n: int, k: int, enough: int, device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In programs of several outputs, or of one."""
    monkeypatch.setattr("worker.kernels.triton.gemv.ENOUGH", enough)
    x, w = torch.randn(1, k).to(device, dtype), torch.randn(n, k).to(device, dtype)
    bias, add = torch.randn(n).to(device, dtype), torch.randn(1, n).to(device, dtype)
    close(gemv(x, w), matmul.reference(x, w))
    close(gemv(x, w, bias=bias, add=add), matmul.reference(x, w, bias=bias, add=add))
    wide = gemv(x, w, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    close(wide, matmul.reference(x, w, out_dtype=torch.float32))


@pytest.mark.parametrize("invariant", [False, True])
def test_it_serves_one_row_unless_company_must_not_matter(
    invariant: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    monkeypatch.setattr(matrices, "gemv", lambda x, *_, **__: rows.append(len(x)))
    dense = TritonMatrices(device, invariant=invariant).dense([torch.randn(8, 64)], None)
    for count in (1, 2):
        dense.multiply(torch.randn(count, 64, device=device))
    assert rows == ([] if invariant else [1])


@pytest.mark.parametrize("wtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_eight_bits(wtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(1, 300).to(device, torch.float16)
    w = (torch.randn(7, 300) * 30).clamp(-127, 127).to(wtype).to(device)
    scales = torch.rand(7, device=device) * 0.01
    close(gemv(x, w, w_scales=scales), matmul.reference(x, w, w_scales=scales))


@pytest.mark.parametrize(("gated", "n", "k"), [(True, 128, 300), (False, 10, 2080)])
def test_scales_of_blocks(gated: bool, n: int, k: int, device: torch.device) -> None:
    rows = 2 * n if gated else n
    x = torch.randn(1, k).to(device, torch.float16)
    w = (torch.randn(rows, k) * 30).to(torch.float8_e4m3fn).to(device)
    scales = torch.rand(-(-rows // 128), -(-k // 128), device=device) * 1e-3
    norm = RowNorm(torch.rand(k, device=device), 1e-5)
    found = gemv(x, w, norm=norm, w_scales=scales, gated=gated)
    close(found, reference(x, w, norm=norm, w_scales=scales, gated=gated), 2)


@pytest.mark.parametrize(("gated", "gelu"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("k", [64, 700, 2080])
def test_what_stands_around_a_product(
    gated: bool, gelu: bool, k: int, device: torch.device, dtype: torch.dtype
) -> None:
    x, w = torch.randn(1, k).to(device, dtype) * 3, torch.randn(10, k).to(device, dtype) * k**-0.5
    norm = RowNorm(torch.randn(k).to(device, dtype), 1e-6)
    bias = torch.randn(10).to(device, dtype)
    found = gemv(x, w, norm=norm, bias=bias, gated=gated, gelu=gelu)
    close(found, reference(x, w, norm=norm, bias=bias, gated=gated, gelu=gelu), 2)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("wtype", [torch.int8, torch.float8_e4m3fn])
def test_the_same_with_weights_of_eight_bits(gated: bool, wtype: torch.dtype, device: torch.device) -> None:
    x, k = torch.randn(1, 4144).to(device, torch.float16), 4144
    w = (torch.randn(6, k) * 30).clamp(-127, 127).to(wtype).to(device)
    norm, scales = RowNorm(torch.rand(k, device=device), 1e-5), torch.rand(6, device=device) * 1e-3
    expected = reference(x, w, norm=norm, w_scales=scales, gated=gated)
    close(gemv(x, w, norm=norm, w_scales=scales, gated=gated), expected, 2)
