"""Masks that follow their plan, as the message loop meets them."""

from pathlib import Path

import pytest

from protocol.control import Quit
from protocol.progress import Board, Progress
from protocol.steps import Reset
from tests.worker.core import Core, next_plan, start_plan, wait_until
from tests.worker.gate import PROMPT, Gate, Run, maskless_plan, masks_of, sampled
from worker.failures import ProtocolBroken


@pytest.mark.parametrize("soon", [True, False])
def test_a_step_waits_idly_for_the_masks_that_follow_it(soon: bool, core: Core, run: Run, gate: Gate) -> None:
    board = Board(1)
    worker = run(gate, Progress())
    worker.worker.progress._words = board._words
    core.attach(worker.channel)
    core.send(start_plan(1, PROMPT))
    sampled(core)
    core.send(maskless_plan(2))
    if not soon:
        wait_until(lambda: gate.steps == 2 and board.read(0).budget_s == 0)
    core.send(masks_of(2, 77))
    core.send(next_plan(3))
    assert sampled(core) == [77]
    sampled(core)
    wait_until(lambda: board.read(0).budget_s == 0)
    board.close()


def test_a_step_is_abandoned_where_a_new_epoch_comes_instead_of_masks(
    core: Core, run: Run, gate: Gate, tmp_path: Path
) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send(start_plan(1, PROMPT))
    expected = sampled(core)
    core.send(maskless_plan(2))
    wait_until(lambda: gate.steps == 2)
    core.send(Reset(2))
    core.send(masks_of(2, 77))
    core.send(start_plan(3, PROMPT, epoch=2))
    assert sampled(core) == expected
    core.send(maskless_plan(4, epoch=2))
    wait_until(lambda: gate.steps == 4)
    (tmp_path / "second").mkdir()
    second = Core(tmp_path / "second")
    second.attach(worker.channel, epoch=3)
    second.send(start_plan(1, PROMPT, epoch=3))
    assert sampled(second) == expected
    second.send(maskless_plan(2, epoch=3))
    wait_until(lambda: gate.steps == 6)
    worker.channel.send(Quit())
    assert worker.ended() is None
    assert worker.worker.stale_messages == 1
    second.close()


def test_another_plan_before_the_masks_ends_the_worker(core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send(start_plan(1, PROMPT))
    core.send(maskless_plan(2))
    core.send(next_plan(3))
    error = worker.ended()
    assert isinstance(error, ProtocolBroken)
    assert str(error) == "a StepPlan comes before the masks of step 2"
