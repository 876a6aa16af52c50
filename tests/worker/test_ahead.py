"""The message loop over a runner whose steps take a while, as a device's do."""

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from protocol import columns
from protocol.steps import Reset, StepFailed, StepMasks, StepPlan, StepResult
from tests.worker.core import Core, WorkerThread, next_plan, start_plan, stub_config, wait_until
from worker.launched import DEPTH, Launched
from worker.stub import StubRunner
from worker.worker import MaskSource, carried


class Pending:
    """A Launched that is done when the test says so."""

    def __init__(self, answer: StepResult, log: list[str]) -> None:
        self._answer, self._log = answer, log
        self.error: Exception | None = None
        self.done = threading.Event()

    def ready(self) -> bool:
        return self.done.is_set()

    def result(self) -> StepResult:
        self._log.append(f"collect {self._answer.step}")
        assert self.done.wait(60)
        if self.error is not None:
            raise self.error
        return self._answer


class SlowRunner(StubRunner):
    def __init__(self, folder: Path) -> None:
        super().__init__(stub_config(folder))
        self.log: list[str] = []
        self.steps: list[Pending] = []
        self.resets = 0

    def launch(self, plan: StepPlan, masks: MaskSource = carried) -> Launched:
        self.log.append(f"launch {plan.step}")
        self.steps.append(Pending(self.execute(plan, masks), self.log))
        return self.steps[-1]

    def reset(self) -> None:
        super().reset()
        self.resets += 1

    def finish(self, index: int, error: Exception | None = None) -> None:
        self.steps[index].error = error
        self.steps[index].done.set()


@pytest.fixture
def runner(tmp_path: Path) -> SlowRunner:
    return SlowRunner(tmp_path)


@pytest.fixture
def worker(core: Core, runner: SlowRunner, tmp_path: Path) -> Iterator[WorkerThread]:
    thread = WorkerThread(stub_config(tmp_path), runner)
    core.attach(thread.channel)
    yield thread
    for step in runner.steps:
        step.done.set()
    thread.close()


def step_of(core: Core) -> int:
    result = core.next()
    assert isinstance(result, StepResult), result
    return result.step


def test_the_next_step_is_launched_before_the_last_is_read(
    core: Core, runner: SlowRunner, worker: WorkerThread
) -> None:
    core.send(start_plan(1, [5, 6, 7]))
    core.send(next_plan(2))
    wait_until(lambda: len(runner.steps) == DEPTH)
    assert runner.log == ["launch 1", "launch 2"]
    core.send(next_plan(3))
    wait_until(lambda: "collect 1" in runner.log)
    assert len(runner.steps) == DEPTH, "a third one waits for the first"
    runner.finish(0)
    assert step_of(core) == 1
    wait_until(lambda: len(runner.steps) == 3)
    for index in (2, 1):
        runner.finish(index)
    assert [step_of(core), step_of(core)] == [2, 3], "in order, whichever says first that it is done"


def test_a_step_that_fails_takes_the_next_one_with_it(
    core: Core, runner: SlowRunner, worker: WorkerThread
) -> None:
    core.send(start_plan(1, [5, 6, 7]))
    core.send(next_plan(2))
    wait_until(lambda: len(runner.steps) == DEPTH)
    resets = runner.resets
    runner.finish(0, ValueError("a device's own"))
    failed = core.next()
    assert isinstance(failed, StepFailed)
    assert (failed.step, failed.message) == (1, "ValueError: a device's own")
    assert list(columns.unpack_ids(failed.slots)) == [0]
    assert runner.resets == resets + 1
    core.send(Reset(2))
    core.send(start_plan(1, [5, 6, 7], epoch=2))
    wait_until(lambda: len(runner.steps) == 3)
    runner.finish(2)
    assert step_of(core) == 1


def test_what_is_under_way_is_forgotten_with_its_epoch(
    core: Core, runner: SlowRunner, worker: WorkerThread
) -> None:
    core.send(start_plan(1, [5, 6, 7]))
    wait_until(lambda: len(runner.steps) == 1)
    core.send(Reset(2))
    core.send(start_plan(9, [8], epoch=2))
    wait_until(lambda: len(runner.steps) == 2)
    runner.finish(0)
    runner.finish(1)
    assert step_of(core) == 9


def test_masks_wait_for_the_tokens_that_they_follow_from(
    core: Core, runner: SlowRunner, worker: WorkerThread
) -> None:
    """A result under way is answered before the masks of the next step are waited for: these need it."""
    core.send(start_plan(1, [5, 6, 7]))
    plan = msgspec.structs.replace(next_plan(2), masked_rows=columns.pack_ids([0]))
    core.send(plan)
    wait_until(lambda: "collect 1" in runner.log)
    runner.finish(0)
    assert step_of(core) == 1
    core.send(StepMasks(1, 2, (1 << 40).to_bytes(64, "little")))
    wait_until(lambda: len(runner.steps) == 2)
    runner.finish(1)
    result = core.next()
    assert isinstance(result, StepResult)
    assert list(columns.unpack_ids(result.token_ids)) == [40]
