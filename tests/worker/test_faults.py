"""Faults on purpose: each happens when and as often as it is told to, and to nobody else."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import columns
from protocol.control import Ready
from protocol.errors import StartupError
from protocol.messages import NO_TOKEN
from protocol.progress import Board
from protocol.steps import StepResult
from tests.worker.core import Core, WorkerProcess, next_plan, start_plan, stub_config, wait_until
from worker.faults import AcceleratorError, OutOfMemoryError, faulty, parse
from worker.step_budget import StepBudget
from worker.stub import StubRunner
from worker.worker import Runner

MARKED, OTHER = [5, 77, 7, 8, 9, 10], [5, 6, 7, 8, 9, 10]


def nothing() -> None:
    """Nobody counts the beats."""


def runner_with(
    faults: str,
    tmp_path: Path,
    *,
    rank: int = 0,
    folder: Path | None = None,
    beat: Callable[[], None] = nothing,
) -> Runner:
    environ = {"TERN_FAULTS": faults, "TERN_FAULTS_DIR": str(folder or "")}
    return faulty(StubRunner(stub_config(tmp_path)), rank, StepBudget(), beat, environ)


def tokens(result: StepResult) -> list[int]:
    return list(columns.unpack_ids(result.token_ids))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("melt:step=1", "'melt:step=1' is not a fault: the kinds are raise, die, poison, nan, oom"),
        ("raise", "raise needs token=…, and may have rank, times"),
        ("raise:step=4", "raise needs token=…"),
        ("slow:step=4,speed=2", "slow needs step=…, and may have factor, rank, times"),
        ("hang:step=4-6", "its values are numbers"),
        ("oom:steps=6-5", "its values are numbers"),
        ("oom:steps=x", "its values are numbers"),
        ("hold:step=3", "hold needs file=…, and may have rank"),
        ("raise:token=77; nan:token=many", "'nan:token=many' is not a fault"),
    ],
)
def test_what_is_no_fault_is_refused(text: str, rule: str) -> None:
    with pytest.raises(StartupError, match="TERN_FAULTS") as caught:
        parse(text)
    assert rule in caught.value.message


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"TERN_FAULTS_DIR: .*nowhere' is not a folder"):
        runner_with("raise:token=1", tmp_path, folder=tmp_path / "nowhere")


def test_none_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(runner_with("", tmp_path), StubRunner)
    assert isinstance(runner_with("raise:token=1,rank=1", tmp_path), StubRunner)
    assert capfd.readouterr().err == ""
    assert not isinstance(runner_with("raise:token=1,rank=1", tmp_path, rank=1), StubRunner)
    assert "TERN_FAULTS is set" in capfd.readouterr().err


def test_a_token_in_a_prompt_raises_while_it_is_scheduled(tmp_path: Path) -> None:
    runner = runner_with("raise:token=77", tmp_path)
    runner.execute(start_plan(1, OTHER, slot=1))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="on purpose"):
            runner.execute(start_plan(2, MARKED))
        runner.reset()
    runner.execute(start_plan(3, OTHER))


def test_out_of_memory_in_given_steps(tmp_path: Path) -> None:
    runner = runner_with("oom:steps=2-3", tmp_path)
    runner.execute(start_plan(1, OTHER))
    for _ in range(2):
        with pytest.raises(OutOfMemoryError):
            runner.execute(next_plan(2))
    runner.execute(next_plan(4))


def test_goes_no_further_than_a_file_says(tmp_path: Path) -> None:
    """As many steps or tokens as it says, then it waits, with beats: for another text, or for no file."""
    file = tmp_path / "hold"
    says = ["1 steps 2", "2 tokens 1", "3 tokens 0", ""]
    steps: list[int] = []

    def beat() -> None:
        steps.append(step)
        said = says.pop(0)
        file.write_text(said) if said else file.unlink()

    runner = runner_with(f"hold:file={file}", tmp_path, beat=beat)
    file.write_text("0 steps 0")
    for step in range(8):
        runner.execute(next_plan(step) if step else start_plan(step, OTHER))
    assert steps == [0, 2, 3, 3]


def test_counted_over_incarnations(tmp_path: Path) -> None:
    """A restarted worker knows what has happened; without the folder it does not."""
    (tmp_path / "marks").mkdir()
    for folder, expected in ((tmp_path / "marks", 2), (None, 4)):
        happened = 0
        for _ in range(4):
            runner = runner_with("poison:token=77,times=2", tmp_path, folder=folder)
            try:
                runner.execute(start_plan(1, MARKED))
            except AcceleratorError:
                happened += 1
        assert happened == expected


def test_a_sick_row_fails_alone_and_leaves_garbage(tmp_path: Path) -> None:
    """Its blocks are spoilt from the token on: what lies before is as healthy as another prompt's."""
    runner = runner_with("nan:token=77", tmp_path)
    healthy = StubRunner(stub_config(tmp_path))
    expected = [tokens(healthy.execute(plan))[-1] for plan in (start_plan(1, OTHER, slot=1), next_plan(2, 1))]
    prompt = [1, 2, 3, 4, 5, 77, 7, 8, 9]
    assert tokens(runner.execute(start_plan(1, prompt))) == [NO_TOKEN]
    assert tokens(runner.execute(start_plan(2, OTHER, slot=1))) == expected[:1]
    result = runner.execute(next_plan(3, 0, 1))
    assert tokens(result) == [NO_TOKEN, expected[1]]
    assert result.failed_rows == ((0, "numerical_error"),)
    inner = runner.runner  # type: ignore[attr-defined]
    clean = StubRunner(stub_config(tmp_path))
    clean.execute(start_plan(1, prompt))
    assert inner.cache[:4] == clean.cache[:4]
    assert inner.cache[4:9] != clean.cache[4:9]
    assert inner.cache[32:38] == healthy.cache[32:38], "the neighbour's"


def test_dies_by_a_signal_of_its_own(tmp_path: Path) -> None:
    core = Core(tmp_path)
    process = WorkerProcess(stub_config(tmp_path), "--stub", environ={"TERN_FAULTS": "die:token=77"})
    try:
        process.next(Ready)
        core.attach(process.channel)
        core.send(start_plan(1, MARKED))
        assert process.wait()[0] == -signal.SIGABRT
    finally:
        process.close()
        core.close()


@pytest.mark.parametrize("fault", ["hang:step=2", "hang_gil:step=2", "slow:step=2,factor=20"])
def test_the_board_shows_a_hang(fault: str, tmp_path: Path) -> None:
    """The step has said how long it may take, and nothing more is heard."""
    core = Core(tmp_path)
    board = Board(1)
    process = WorkerProcess(stub_config(tmp_path), "--stub", environ={"TERN_FAULTS": fault}, fd=board.fd)
    try:
        process.next(Ready)
        core.attach(process.channel)
        core.send(start_plan(1, OTHER))
        assert isinstance(core.next(), StepResult)
        wait_until(lambda: board.read(0).budget_s == 0)
        rested = board.read(0).beats
        core.send(next_plan(2))
        wait_until(lambda: board.read(0).beats == rested + 1)
        assert board.read(0).budget_s > 0.75
        assert not core.link.socket.poll(200)
        assert board.read(0).beats == rested + 1
    finally:
        process.close()
        core.close()
        board.close()
