import pytest
import torch

from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton.activation import activate, reference


@pytest.mark.parametrize("shape", [(1, 62), (3, 2 * 1025)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_activations(
    shape: tuple[int, int], gelu: bool, gated: bool, device: torch.device, dtype: torch.dtype
) -> None:
    x = (torch.randn(shape) * 4).to(device, dtype)
    close(activate(x, gelu=gelu, gated=gated), reference(x, gelu=gelu, gated=gated))


@pytest.mark.parametrize("gelu", [False, True])
def test_far_ends_are_finite(gelu: bool, device: torch.device) -> None:
    x = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4]], device=device)
    found = activate(x, gelu=gelu, gated=False)
    assert torch.equal(found, torch.tensor([[0.0, 0.0, 0.0, 90.0, 1e4]], device=device))
