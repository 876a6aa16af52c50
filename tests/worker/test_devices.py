import pytest

from protocol.errors import StartupError
from worker import devices


def test_the_cpu_brings_no_kernels_of_its_own() -> None:
    assert devices.kernels_of("cpu") is None
    assert devices.kernels_of("auto") is None


def test_a_gpu_is_refused_until_its_kernels_have_run_on_one() -> None:
    with pytest.raises(StartupError, match="never run on a GPU") as refusal:
        devices.kernels_of("cuda")
    assert "scripts/gpu_check" in refusal.value.hint
