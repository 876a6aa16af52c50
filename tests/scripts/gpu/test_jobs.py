"""Processes of jobs: what they find arrives, also when they hang or fail afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.gpu.job_process import check_launch
from scripts.gpu.jobs import ROOT, Job, run


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


def test_what_a_launch_takes_is_said() -> None:
    def no_compiler() -> None:
        raise RuntimeError("Failed to find C compiler")

    check_launch(lambda: None)
    with pytest.raises(RuntimeError, match=r"no kernel: RuntimeError: Failed.*C compiler.*Python\.h \("):
        check_launch(no_compiler)


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise ImportError('of another Python')")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [ROOT / "scripts/gpu_check", "--list"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "  msgspec: of another Python\ncarry wheels" in done.stderr
