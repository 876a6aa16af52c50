"""The step that runs the tests marked `gpu`: counted, failures by name, also when the time is up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.gpu import gpu_tests
from scripts.gpu.bench import Bench
from scripts.gpu.jobs import ROOT
from scripts.gpu.results import Measurement
from scripts.gpu.server import Servers

SOME = """
import pytest

@pytest.mark.gpu
def test_fine(): pass

@pytest.mark.gpu
def test_wrong(): assert 1 == 2
"""
HANGING = "import time\n\ndef test_hangs(): time.sleep(600)\n"
ALONE = """
tests/a/test_x.py::test_fine[1-float32] PASSED                 [ 25%]
tests/a/test_x.py::test_wrong[1-float32] FAILED                [ 50%]
tests/a/test_x.py::test_fine[a b] PASSED                       [ 75%]
=================================== FAILURES ===================================
E   assert "PASSED" == "FAILED"
FAILED tests/a/test_x.py::test_wrong[1-float32] - assert 1 == 2
"""
TOGETHER = """
8 workers [4 items]
[gw0] [ 25%] PASSED tests/a/test_x.py::test_fine[1-float32]
[gw1] [ 50%] ERROR tests/a/test_x.py::test_wrong[1-float32]
"""


def _collect(into: list[Measurement], found: Iterator[Measurement]) -> None:
    for measurement in found:
        into.append(measurement)


def ran(
    monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, limit_s: float
) -> tuple[list[Measurement], Exception]:
    path = folder / "test_some.py"
    path.write_text(text)
    monkeypatch.setattr(gpu_tests, "REHEARSED", [str(path)])
    found: list[Measurement] = []
    bench = Bench(True, Servers(folder, []), folder)
    with pytest.raises((RuntimeError, TimeoutError)) as raised:
        _collect(found, gpu_tests.run_tests(bench, limit_s))
    return found, raised.value


def test_what_is_run_is_there() -> None:
    assert all((ROOT / path).exists() for path in (*gpu_tests.TESTS, *gpu_tests.REHEARSED))


def test_verdicts_as_they_are_written() -> None:
    passed, failed = ["tests/a/test_x.py::test_fine[1-float32]"], ["tests/a/test_x.py::test_wrong[1-float32]"]
    assert gpu_tests.verdicts(ALONE) == ([*passed, "tests/a/test_x.py::test_fine[a b]"], failed)
    assert gpu_tests.verdicts(TOGETHER) == (passed, failed)


def test_failures_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, error = ran(monkeypatch, tmp_path, SOME, 60)
    assert [(m.name, m.value) for m in found] == [("tests passed", 1)]
    assert str(error) == "1 failed: ::test_wrong"


def test_one_that_hangs_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, error = ran(monkeypatch, tmp_path, HANGING, 1)
    assert [(m.name, m.value) for m in found] == [("tests passed", 0)]
    assert str(error) == "not done within 1 s; failed so far: none"
