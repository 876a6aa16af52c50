"""gpu_check where there is no GPU, and the order, the clock and the failures of its subsets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts.gpu.check import NO_GPU, Subset, main, run
from scripts.gpu.floors import Ceilings
from scripts.gpu.results import Measurement, Results


def results() -> Results:
    return Results("GPU", "2026-01-31", "abc1234", {})


def ceilings() -> tuple[Ceilings, list[Measurement]]:
    return Ceilings(4e12, 8e14), [Measurement("ceilings", "copy", 4.0, "TB/s", "higher")]


def subset(name: str, values: list[float], order: list[str]) -> Subset:
    def measure(limits: Ceilings) -> Iterator[Measurement]:
        assert limits.bytes_per_s == 4e12
        for value in values:
            order.append(f"{name} {value}")
            yield Measurement(name, "step", value, "ms")

    return measure


def fine(_: float) -> tuple[bool, str]:
    return True, "3 passed"


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == NO_GPU == 2
    said = capsys.readouterr()
    assert "no NVIDIA GPU can be used here" in said.err
    assert "Nothing was run" in said.err
    assert not said.out


def test_an_unknown_subset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "decoding"])
    assert "'decoding'" in capsys.readouterr().err


def test_everything_in_order_and_saved(tmp_path: Path) -> None:
    order: list[str] = []
    subsets = {"a": subset("a", [1, 2], order), "b": subset("b", [3], order)}
    found = results()
    assert run(found, subsets, ceilings, [], 60, tmp_path, run_tests=fine) == 0
    assert order == ["a 1", "a 2", "b 3"]
    assert [m.group for m in found.measurements] == ["ceilings", "a", "a", "b"]
    content = json.loads(found.path(tmp_path).read_text())
    assert content["tests"] == "3 passed"
    assert len(content["measurements"]) == 4


def test_subsets_by_name(tmp_path: Path) -> None:
    order: list[str] = []
    subsets = {"a": subset("a", [1], order), "b": subset("b", [3], order)}
    found = results()
    run(found, subsets, ceilings, ["b"], 60, tmp_path, run_tests=fine)
    assert order == ["b 3"]
    assert found.tests == "not run"
    found = results()
    run(found, subsets, ceilings, ["tests"], 60, tmp_path, run_tests=fine)
    assert (found.tests, found.measurements) == ("3 passed", [])


def test_a_failed_test_is_the_exit_code(tmp_path: Path) -> None:
    assert run(results(), {}, ceilings, [], 60, tmp_path, run_tests=lambda _: (False, "1 failed")) == 1


def test_when_the_time_is_up_the_rest_is_named(tmp_path: Path) -> None:
    order: list[str] = []
    subsets = {"a": subset("a", [1, 2], order), "b": subset("b", [3, 4], order)}
    times = iter([0.0, 1.0, 10.0, 70.0, 71.0])
    found = results()
    run(found, subsets, ceilings, [], 60, tmp_path, clock=lambda: next(times), run_tests=fine)
    assert order == ["a 1", "a 2"]
    assert found.left_out == {"a": "from here on: the time was up", "b": "the time was up"}


def test_a_failed_benchmark_costs_no_other(tmp_path: Path) -> None:
    order: list[str] = []

    def broken(_: Ceilings) -> Iterator[Measurement]:
        yield Measurement("a", "step", 1.0, "ms")
        raise RuntimeError("out of memory")

    found = results()
    run(found, {"a": broken, "b": subset("b", [3], order)}, ceilings, [], 60, tmp_path, run_tests=fine)
    assert order == ["b 3"]
    assert found.left_out == {"a": "from here on: RuntimeError: out of memory"}
