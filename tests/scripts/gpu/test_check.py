"""gpu_check where there is no GPU, and the order, the clock and the failures of its steps."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.gpu import check, plan
from scripts.gpu.bench import Bench
from scripts.gpu.check import NO_GPU, chosen, main, run
from scripts.gpu.floors import Ceilings
from scripts.gpu.jobs import KERNELS, Device, Found, Job
from scripts.gpu.plan import PARTS, Step, steps
from scripts.gpu.results import Measurement, Results
from scripts.gpu.server import Servers


def results() -> Results:
    return Results(gpu="GPU", date="2026-01-31", commit="abc1234", versions={})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    servers = Servers(tmp_path, [])
    yield Bench(True, servers, tmp_path)
    servers.close()


class Clock:
    """Each measurement takes ten seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(name: str, values: list[float], clock: Clock, error: str = "", expected_s: float = 10) -> Step:
    def measure(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        for value in values:
            clock.now += 10
            yield Measurement(part=name, name="step", value=value, unit="ms")
        if error:
            raise RuntimeError(error)

    return Step(name, name, expected_s, measure)


def values(found: Results) -> list[tuple[str, float]]:
    return [(m.part, m.value) for m in found.measurements]


def test_everything_in_order_and_saved(bench: Bench, tmp_path: Path) -> None:
    clock, found = Clock(), results()
    wanted = [step("decode", [1, 2], clock), step("http", [3], clock)]
    assert run(found, wanted, bench, 60, tmp_path, clock) == 0
    assert values(found) == [("decode", 1), ("decode", 2), ("http", 3)]
    content = json.loads((tmp_path / "gpu-2026-01-31.json").read_text())
    assert len(content["measurements"]) == 3
    assert "| http | step | 3 |" in (tmp_path / "gpu-2026-01-31.md").read_text()


def test_a_run_that_is_cut_off_has_saved_what_it_had(bench: Bench, tmp_path: Path) -> None:
    def killed(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        yield Measurement(part="http", name="step", value=3, unit="ms")
        raise KeyboardInterrupt

    clock = Clock()
    wanted = [step("decode", [1], clock), Step("http", "http", 1, killed)]
    with pytest.raises(KeyboardInterrupt):
        run(results(), wanted, bench, 60, tmp_path, clock)
    content = json.loads((tmp_path / "gpu-2026-01-31.json").read_text())
    assert [m["value"] for m in content["measurements"]] == [1, 3]


def test_a_step_that_fails_costs_no_other(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, found = Clock(), results()

    def saved(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        content = json.loads((tmp_path / "gpu-2026-01-31.json").read_text())
        assert content["details"]["decode"].startswith("Traceback"), "before anything else is begun"
        assert "in measure" in content["details"]["decode"]
        return iter([])

    wanted = [
        step("decode", [1], clock, error="out of\nmemory"),
        Step("graphs", "graphs", 1, saved),
        step("http", [3], clock),
    ]
    assert run(found, wanted, bench, 60, tmp_path, clock) == 1
    assert values(found) == [("decode", 1), ("http", 3)]
    assert found.failed == {"decode": "RuntimeError: out of memory"}
    assert json.loads((tmp_path / "gpu-2026-01-31.json").read_text())["failed"] == found.failed
    assert "failed: decode: RuntimeError: out of memory" in capsys.readouterr().out


def test_a_kernel_that_breaks_its_process_costs_no_other_group(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, ...]] = []

    def broken(job: Job) -> Iterator[Found]:
        begun.append(job.groups)
        for group in job.groups:
            yield Found(measurement=Measurement(part="kernels", name=group, value=1, unit="µs"))
            if group == KERNELS[1]:
                error = RuntimeError("kernels ended with 1: illegal memory access")
                error.add_note("the process wrote: at decode")
                raise error
            yield Found(done=group)

    monkeypatch.setattr(plan, "run", broken)
    bench.ceilings = Ceilings(1e12, {"bf16": 1e14})
    found = plan.kernels(bench, 60)
    assert [next(found).name for _ in KERNELS] == list(KERNELS)
    with pytest.raises(RuntimeError, match=f"{KERNELS[1]}: kernels ended with 1: illegal") as raised:
        next(found)
    assert raised.value.__notes__ == ["the process wrote: at decode"]
    assert begun == [KERNELS, KERNELS[2:]]


def test_what_no_longer_fits_is_named_and_what_does_is_run(bench: Bench, tmp_path: Path) -> None:
    clock, found = Clock(), results()
    wanted = [
        step("decode", [1, 2, 3], clock),
        step("offline", [4], clock, expected_s=40),
        step("http", [5], clock),
    ]
    assert run(found, wanted, bench, 45, tmp_path, clock) == 0
    assert values(found) == [("decode", 1), ("decode", 2), ("decode", 3), ("http", 5)]
    assert found.left_out == {"offline": "it takes some 40 s, and 15 s were left"}


def test_a_step_that_takes_too_long_is_cut_off(bench: Bench, tmp_path: Path) -> None:
    clock, found = Clock(), results()
    wanted = [step("decode", [1] * 20, clock), step("http", [5], clock)]
    assert run(found, wanted, bench, 100, tmp_path, clock) == 0
    assert values(found) == [("decode", 1)] * 6 + [("http", 5)]
    assert found.left_out == {"decode": "from here on: it had 60 s"}


def test_a_server_that_must_be_started_takes_time_too(bench: Bench, tmp_path: Path) -> None:
    real = next(step for step in steps(False) if step.name == "decode Llama-3.1-8B bf16")
    assert real.needs_s(bench.servers) > 15
    assert Step("kernels", "kernels", 5, real.measure).needs_s(bench.servers) == 5


def test_parts_by_name() -> None:
    every = steps(False)
    assert {step.part for step in every} == set(PARTS)
    assert {step.part for step in chosen(every, [])} == set(PARTS) - {"tune"}
    assert [step.part for step in chosen(every, [])][:3] == ["tests", "ceilings", "decode"]
    assert {step.part for step in chosen(every, ["prefill", "decode"])} == {"ceilings", "decode", "prefill"}
    assert [step.part for step in chosen(every, ["tests"])] == ["tests"]
    assert [step.part for step in chosen(every, ["tune"])] == ["tune"]
    names = [step.name for step in every]
    assert len(set(names)) == len(names)
    assert {step.part for step in steps(True)} == set(PARTS)
    assert "invariant" in [step.part for step in every[:8]], "what --batch-invariant on costs is known early"


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["decoding"])
    assert "'decoding'" in capsys.readouterr().err


def test_the_list_names_parts_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "nano-vllm's benchmark" in said
    assert "decode Qwen3-0.6B bf16" in said


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(job: Job) -> Iterator[object]:
        raise RuntimeError("device ended with 1: torch can use no GPU")

    monkeypatch.setattr(check, "run_job", nothing)
    assert main([]) == NO_GPU == 2
    said = capsys.readouterr()
    assert "no NVIDIA GPU can be used here: device ended with 1: torch can use no GPU" in said.err
    assert not said.out


def test_a_rehearsal_leaves_the_results_of_the_project_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(bench: Bench, limit_s: float) -> Iterator[Measurement]:
        assert bench.rehearsal
        yield Measurement(part="kernels", name="step", value=1, unit="ms")

    monkeypatch.setattr(check, "describe", lambda rehearsal: Device("rehearsal", {"torch": "2"}))
    monkeypatch.setattr(check, "steps", lambda rehearsal: [Step("kernels", "kernels", 1, one)])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert main(["--rehearse", "--commit", "abc1234"]) == 0
    (path,) = tmp_path.glob("tern-rehearsal-*/*.json")
    assert json.loads(path.read_text())["commit"] == "abc1234"
    assert str(path) in capsys.readouterr().out
