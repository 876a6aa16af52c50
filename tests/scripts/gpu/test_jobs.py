"""Processes of jobs: what they find arrives, also when they hang or fail afterwards."""

import time

import pytest

from scripts.gpu.jobs import Job, run


class Clock:
    """The real one, until time is said to be up."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def values(shape: str) -> list[float]:
    """Of a job that does as it says after two findings; time is up then, if it hangs."""
    found, clock = list[float](), Clock()
    job = Job(what="kernels", rehearsal=True, limit_s=60, shape=shape)
    try:
        for one in run(job, "tests.scripts.gpu.fake_job", clock):
            assert one.measurement is not None
            found.append(one.measurement.value)
            if shape == "hang" and len(found) == 2:
                clock.ahead = 60
    finally:
        assert found == [1.0, 2.0]
    return found


def test_all_that_is_found() -> None:
    assert values("") == [1.0, 2.0]


def test_one_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="kernels ended with 1: CUDA error: an illegal") as raised:
        values("fail")
    assert "an illegal memory access was encountered" in raised.value.__notes__[0]


def test_one_that_hangs_is_cut_off() -> None:
    with pytest.raises(TimeoutError, match="not done within 60 s"):
        values("hang")
