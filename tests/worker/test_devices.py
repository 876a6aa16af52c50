"""Which device is chosen of what is found, and how its ranks meet. No GPU is needed."""

import pytest
import torch

from protocol.errors import StartupError
from protocol.options import ParallelOptions
from worker import devices
from worker.devices import Found

HERE = Found(["NVIDIA H100"] * 2, [(9, 0)] * 2, "13.0", triton=True)


def test_the_cpu_is_asked_for_or_all_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "look", lambda: HERE._replace(names=[], capabilities=[]))
    assert devices.choose(ParallelOptions(device="cpu"), 0) is None
    assert devices.choose(ParallelOptions(device="auto"), 0) is None


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [
        (Found([], [], None, True), 1, "built without CUDA) finds no NVIDIA GPU"),
        (Found([], [], "13.0", True), 1, "built with CUDA 13.0) finds no NVIDIA GPU"),
        (HERE, 4, "--tensor-parallel-size 4 needs as many GPUs, and 2 can be used"),
        (HERE._replace(capabilities=[(9, 0), (7, 5)]), 2, "compute capability 7.5, and the kernels need 8.0"),
        (HERE._replace(triton=False), 1, "Triton, which is not installed"),
    ],
)
def test_what_cannot_serve_is_named(
    found: Found, wanted: int, reason: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Asked for, it is refused; left to us, it is not taken, and whoever has idle GPUs is told."""
    monkeypatch.setattr(devices, "look", lambda: found)
    with pytest.raises(StartupError) as refusal:
        devices.choose(ParallelOptions(device="cuda", tensor_parallel_size=wanted), 0)
    assert reason in refusal.value.message
    assert "--device cpu" in refusal.value.hint
    assert devices.choose(ParallelOptions(tensor_parallel_size=wanted), 0) is None
    assert (reason in capfd.readouterr().err) == bool(found.names)


@pytest.mark.parametrize(
    ("capabilities", "here"),
    [([], "here is the CPU"), ([(9, 0), (8, 9)], "a GPU here has 8.9")],
)
def test_overlapping_launches_are_refused_where_they_cannot_be(
    capabilities: list[tuple[int, int]], here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = HERE._replace(names=HERE.names[: len(capabilities)], capabilities=capabilities)
    monkeypatch.setattr(devices, "look", lambda: found)
    options = ParallelOptions(programmatic_launch="on", tensor_parallel_size=len(capabilities) or 1)
    with pytest.raises(StartupError, match=f"--programmatic-launch on needs GPUs .*; {here}"):
        devices.choose(options, 0)


def test_only_as_many_as_are_wanted_are_judged() -> None:
    assert devices.refusal(HERE._replace(capabilities=[(8, 0), (7, 5)]), 1) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu_is_found_where_there_is_none() -> None:
    assert not devices.look().names
