import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import norm


@pytest.mark.parametrize("shape", [(1, 64), (3, 80), (2, 1031)])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("with_summand", [False, True])
def test_norms(
    shape: tuple[int, int], layer_norm: bool, with_summand: bool, device: torch.device, dtype: torch.dtype
) -> None:
    x = (torch.randn(shape) * 3 + 1).to(device, dtype)
    weight, bias = (torch.randn(shape[1]).to(device, dtype) for _ in range(2))
    options = {"bias": bias if layer_norm else None, "add": x.flip(0) if with_summand else None}
    close(norm.norm(x, weight, 1e-5, **options), norm.reference(x, weight, 1e-5, **options))


def test_one_plus_weight_keeps_its_float32(device: torch.device) -> None:
    """Gemma: 1 + weight in float32 beside half-precision rows."""
    x = torch.randn(2, 96).to(device, torch.float16)
    weight = (1 + torch.randn(96) * 1e-3).to(device)
    close(norm.norm(x, weight, 1e-6), norm.reference(x, weight, 1e-6))


def test_rows_of_a_wider_matrix(device: torch.device) -> None:
    wide = torch.randn(3, 200, device=device)
    x, weight = wide[:, :80], torch.randn(80, device=device)
    close(norm.norm(x, weight, 1e-5), norm.reference(x, weight, 1e-5))
