import pytest
import torch
from torch import Tensor

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import int4_matmul, matmul
from worker.kernels.triton.quantize_rows import quantize_rows
from worker.kernels.triton.quantize_rows import reference as quantized_reference
from worker.kernels.triton.tuning import Tiles

INT8, FP8 = torch.int8, torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a K of a few hundred is cut."""
    for name in ("LEAST_PART", "LEAST_LARGE_PART"):
        monkeypatch.setattr(matmul, name, 128)


def stored(n: int, k: int, dtype: torch.dtype) -> Tensor:
    if dtype == INT8:
        return torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return (torch.randn(n, k) * 20).to(dtype)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 300), (5, 33, 128), (17, 70, 64), (66, 40, 300)])
@pytest.mark.parametrize("more", [False, True])
def test_dense(m: int, n: int, k: int, more: bool, device: torch.device, dtype: torch.dtype) -> None:
    x, w = torch.randn(m, k).to(device, dtype), torch.randn(n, k).to(device, dtype)
    bias = torch.randn(n).to(device, dtype) if more else None
    add = torch.randn(m, n).to(device, dtype) if more else None
    close(matmul.matmul(x, w, bias=bias, add=add), matmul.reference(x, w, bias=bias, add=add))


@pytest.mark.parametrize("wtype", [INT8, FP8])
@pytest.mark.parametrize("m", [1, 17])
def test_weights_of_eight_bits_with_a_scale_per_row(wtype: torch.dtype, m: int, device: torch.device) -> None:
    x = torch.randn(m, 272).to(device, torch.float16)
    w, scales = stored(70, 272, wtype).to(device), (torch.rand(70) * 0.01).to(device)
    close(matmul.matmul(x, w, w_scales=scales), matmul.reference(x, w, w_scales=scales), 2)


@pytest.mark.parametrize("wtype", [INT8, FP8])
@pytest.mark.parametrize("m", [1, 17])
def test_both_of_eight_bits(wtype: torch.dtype, m: int, device: torch.device) -> None:
    x, x_scales = quantized_reference(torch.randn(m, 272), wtype)
    x, x_scales = x.to(device), x_scales.to(device)
    w, scales = stored(40, 272, wtype).to(device), (torch.rand(40) * 0.01).to(device)
    found = matmul.matmul(x, w, x_scales=x_scales, w_scales=scales, out_dtype=torch.float16)
    close(found, matmul.reference(x, w, x_scales=x_scales, w_scales=scales, out_dtype=torch.float16))


@pytest.mark.parametrize("k", [128, 300])
@pytest.mark.parametrize("quantized", [False, True])
def test_scales_of_blocks(k: int, quantized: bool, device: torch.device) -> None:
    """The last block of rows and of columns may be smaller."""
    w, scales = stored(200, k, FP8).to(device), torch.rand(2, -(-k // 128)).to(device) * 0.01
    x, x_scales = torch.randn(3, k).to(device, torch.float16), None
    if quantized:
        codes, of_x = quantized_reference(x.cpu(), FP8, 128)
        x, x_scales = codes.to(device), of_x.to(device)
    found = matmul.matmul(x, w, x_scales=x_scales, w_scales=scales, out_dtype=torch.float16)
    close(found, matmul.reference(x, w, x_scales=x_scales, w_scales=scales, out_dtype=torch.float16), 2)


@pytest.mark.parametrize("group", [None, 32])
def test_rows_are_quantized(group: int | None, device: torch.device) -> None:
    x = torch.randn(3, 80, device=device)
    x[1] = 0
    found, expected = quantize_rows(x, INT8, group), quantized_reference(x, INT8, group)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)
    assert int((found[0].int() - expected[0].int()).abs().max()) <= 1
    assert not found[0][1].any()


def test_the_number_of_rows_does_not_cut_k_differently(device: torch.device) -> None:
    """Few rows: a row's bits are the same alone and in company."""
    x, w = torch.randn(9, 600, device=device), torch.randn(48, 600, device=device)
    assert matmul.parts_of(48, 600) > 1
    assert torch.equal(matmul.matmul(x[4:5].contiguous(), w)[0], matmul.matmul(x, w)[4])


def test_how_often_k_is_cut() -> None:
    """Alike for all rows of a class; never where there are tiles enough, nor into less than is worth it."""
    large = Tiles(128, 128, 128, 8, 3)

    def parts(m: int, n: int, k: int = 4096, *, invariant: bool = False) -> int:
        return matmul.parts_for(m, n, k, large, invariant=invariant)

    assert parts(1, 4096) == parts(64, 4096) == parts(300, 4096, invariant=True) == 4
    assert [parts(m, 4096) for m in (65, 128, 129, 256, 257)] == [4, 4, 2, 2, 1]
    assert parts(200, 28_672) == 1
    assert parts(100, 1024, 256) == 2, "two parts of 128 columns, here"


@pytest.mark.parametrize(("k", "group"), [(256, 128), (192, 64), (160, 32), (96, 96), (200, 200), (300, 128)])
@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize("m", [1, 17])
def test_four_bits(k: int, group: int, with_zeros: bool, m: int, device: torch.device) -> None:
    n = 70
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    packed, groups = int4_matmul.pack(codes).to(device), -(-k // group)
    scales = (torch.rand(n, groups) * 0.1 + 0.01).to(device)
    zeros = torch.randint(0, 16, (n, groups)).float().to(device) if with_zeros else None
    x = torch.randn(m, k).to(device, torch.float16)
    bias = torch.randn(n).to(device, torch.float16)
    found = int4_matmul.int4_matmul(x, packed, scales, zeros, group, bias=bias)
    close(found, int4_matmul.reference(x, packed, scales, zeros, group, bias=bias), 2)


def test_four_bits_in_parts(device: torch.device) -> None:
    codes = torch.randint(0, 16, (16, 1100), dtype=torch.uint8)
    packed, scales = int4_matmul.pack(codes).to(device), torch.rand(16, 9).to(device) * 0.1
    x, add = torch.randn(2, 1100).to(device, torch.float16), torch.randn(2, 16).to(device, torch.float16)
    found = int4_matmul.int4_matmul(x, packed, scales, None, 128, add=add)
    close(found, int4_matmul.reference(x, packed, scales, None, 128, add=add), 2)
