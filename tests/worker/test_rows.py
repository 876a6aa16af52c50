"""Norms and activations in C against torch's."""

import pytest
import torch
import torch.nn.functional as F

from tests.worker.native import kernels, threads
from worker.kernels import activation
from worker.kernels.cpu.library import Library
from worker.kernels.rows import RowNorm, fused

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""A rounding more or less of a number of about 1."""


@pytest.fixture(scope="module")
def native() -> Library:
    return kernels()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("rows", "size"), [(1, 8), (3, 192), (130, 100), (2, 5000)])
def test_norms(native: Library, dtype: torch.dtype, rows: int, size: int) -> None:
    torch.manual_seed(size)
    x = torch.randn(rows, size).to(dtype) * 3
    weight, bias, add = torch.randn(size), torch.randn(size).to(dtype), torch.randn(rows, size).to(dtype)
    rms = RowNorm(native, weight, None, 1e-5, centred=False)
    expected = F.rms_norm(x.float(), (size,), weight, 1e-5)
    layer = RowNorm(native, weight.to(dtype), bias, 1e-5, centred=True)
    centred = F.layer_norm(x.float(), (size,), weight.to(dtype).float(), bias.float(), 1e-5)
    tolerance = TOLERANCE[dtype]
    with threads(native, 2):
        for got, reference in (
            (rms(x, None), expected),
            (rms(x, add), expected + add),
            (layer(x, None), centred),
            (layer(x, add), centred + add),
        ):
            torch.testing.assert_close(got, reference.to(dtype), atol=tolerance, rtol=tolerance)
    assert torch.equal(rms(x, add)[-1], rms(x[-1:], add[-1:])[0]), "a row does not depend on its company"


def test_what_is_added_need_not_be_in_one_piece(native: Library) -> None:
    """So large that the system takes a copy back at once that nobody holds."""
    x, add = torch.randn(3000, 4096), torch.randn(4096, 3000).t()
    norm = RowNorm(native, torch.ones(4096), None, 1e-5, centred=False)
    assert torch.equal(norm(x, add), norm(x, add.contiguous()))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", [1, 96, 512, 9000])
@pytest.mark.parametrize(
    "function", [activation.silu_and_multiply, activation.gelu_tanh_and_multiply, activation.gelu_tanh]
)
def test_activations(native: Library, dtype: torch.dtype, size: int, function: activation.Activation) -> None:
    x = (torch.randn(5, 2 * size) * 4).to(dtype)
    x[0, 0], x[1, 0], x[2, 0] = 60, -60, -1e4
    got = fused(function, native)(x)
    tolerance = 2 * TOLERANCE[dtype]
    # Where 1 + tanh cancels, what is left of a rounding is multiplied by the number (6) and by its gate (16).
    torch.testing.assert_close(got, function(x.float()).to(dtype), atol=8 * tolerance, rtol=tolerance)


def test_an_activation_without_a_kernel_stays(native: Library) -> None:
    assert fused(torch.relu, native) is torch.relu
    assert fused(activation.gelu_tanh, None) is activation.gelu_tanh


def test_nan_stays_nan(native: Library) -> None:
    x = torch.ones(2, 64)
    x[0, 3] = torch.nan
    norm = RowNorm(native, torch.ones(64), None, 1e-5, centred=False)
    assert norm(x, None)[0].isnan().all()
    assert norm(x, None)[1].isfinite().all()
    assert fused(activation.gelu_tanh, native)(x)[0, 3].isnan()
