"""The message loop over the stub: its word on the progress board, and what becomes of a step that fails."""

from pathlib import Path

import msgspec
import pytest

from protocol import columns
from protocol.control import Failed, Quit, Ready
from protocol.progress import Board, Progress
from protocol.sampling import SamplingParams
from protocol.steps import Profile, Reset, StepFailed, WorkerReply
from tests.worker.core import (
    Core,
    WorkerProcess,
    next_plan,
    start_plan,
    stub_config,
    wait_until,
)
from tests.worker.gate import PROMPT, Gate, Run, maskless_plan, masks_of, sampled
from worker.failures import ProtocolBroken, RowsFailed
from worker.faults import AcceleratorError, OutOfMemoryError
from worker.step_budget import FLOOR_S, UNMEASURED_S
from worker.worker import MOST_PLANS_AHEAD


def failure(core: Core) -> StepFailed:
    failed = core.next()
    assert isinstance(failed, StepFailed), failed
    return failed


def test_the_board_shows_what_the_loop_is_at(core: Core, run: Run, gate: Gate) -> None:
    board = Board(1)
    worker = run(gate, Progress())
    worker.worker.progress._words = board._words  # one process: the descriptor cannot be handed over
    core.attach(worker.channel)
    wait_until(lambda: worker.worker.epoch == 1)
    wait_until(lambda: board.read(0).budget_s == 0)
    gate.open.clear()
    core.send(start_plan(1, PROMPT))
    wait_until(lambda: gate.steps == 1)
    first = board.read(0)
    assert first.budget_s == UNMEASURED_S
    gate.open.set()
    sampled(core)
    gate.open.clear()
    core.send(next_plan(2))
    wait_until(lambda: gate.steps == 2)
    second = board.read(0)
    assert second.beats > first.beats
    assert second.budget_s > FLOOR_S
    assert second.budget_s != UNMEASURED_S, "the first was measured"
    gate.open.set()
    sampled(core)
    wait_until(lambda: board.read(0).budget_s == 0)
    board.close()


def test_a_step_that_fails_is_answered_and_the_next_epoch_is_good(core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send(start_plan(1, PROMPT))
    expected = sampled(core)
    gate.errors = [ValueError("no such thing")]
    core.send(next_plan(2))
    core.send(next_plan(3))  # planned before the failure was known
    failed = failure(core)
    assert (failed.epoch, failed.step, failed.code) == (1, 2, "internal_error")
    assert (list(columns.unpack_ids(failed.slots)), failed.message) == ([0], "ValueError: no such thing")
    core.send(Reset(2))
    core.send(start_plan(4, PROMPT, epoch=2))
    assert sampled(core) == expected
    assert worker.worker.stale_messages == 1


def test_only_those_known_to_be_the_cause_are_blamed(core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send(start_plan(1, PROMPT, slot=0))
    core.send(start_plan(2, PROMPT, slot=1))
    assert sampled(core) == sampled(core)
    gate.errors = [RowsFailed((1,), ValueError("its parameters"))]
    core.send(next_plan(3, 0, 1))
    assert list(columns.unpack_ids(failure(core).slots)) == [1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_survived_twice_in_a_row(error: Exception, core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    for epoch in range(1, 5):  # a good step in between begins the count anew
        gate.errors = [error if epoch % 3 else None]
        core.send(Reset(epoch))
        core.send(start_plan(epoch, PROMPT, epoch=epoch))
        if epoch % 3:
            assert failure(core).code == "out_of_memory"
        else:
            sampled(core)
    gate.errors = [error, error]
    for epoch in (5, 6):
        core.send(Reset(epoch))
        core.send(start_plan(epoch, PROMPT, epoch=epoch))
    assert failure(core).step == 5
    assert worker.ended() is error


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("x"),
        RuntimeError("CUDA error: an illegal memory access"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
    ids=str,
)
def test_a_lost_device_ends_the_worker(error: Exception, core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    gate.errors = [error]
    core.send(start_plan(1, PROMPT))
    assert worker.ended() is error


def test_a_lost_plan_ends_the_worker(core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send(start_plan(7, PROMPT))  # an epoch may begin with any step
    core.send(next_plan(9))
    sampled(core)
    error = worker.ended()
    assert isinstance(error, ProtocolBroken)
    assert str(error) == "step 9 follows step 7"


def test_an_unreadable_message_ends_the_worker(core: Core, run: Run, gate: Gate) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send_bytes(b"\x00garbage")
    assert isinstance(worker.ended(), ProtocolBroken)


def test_a_new_engine_core_begins_with_any_step(core: Core, run: Run, gate: Gate, tmp_path: Path) -> None:
    worker = run(gate)
    core.attach(worker.channel)
    core.send(start_plan(5, PROMPT))
    expected = sampled(core)
    (tmp_path / "second").mkdir()
    second = Core(tmp_path / "second")
    second.attach(worker.channel, epoch=9)
    second.send(start_plan(1, PROMPT, epoch=9))
    assert sampled(second) == expected
    second.send(Profile(3, True))
    assert second.next() == WorkerReply(3, True, "the stub has nothing to profile")
    second.close()


# ── two ranks ───────────────────────────────────────────────────────────────────────────────────


def test_each_rank_executes_every_plan_and_one_answers(core: Core, run: Run, tmp_path: Path) -> None:
    gates = [Gate(tmp_path, rank=rank, size=2) for rank in (0, 1)]
    leader, follower = (run(gate, rank=rank, size=2) for rank, gate in enumerate(gates))
    core.attach(leader.channel)
    core.send(start_plan(1, PROMPT))
    for step in range(2, 28):
        core.send(next_plan(step))
    for _ in range(1, 28):
        sampled(core)
    wait_until(lambda: gates[1].steps == 27)
    core.send(maskless_plan(28))
    core.send(masks_of(28, 77))
    assert sampled(core) == [77]
    wait_until(lambda: len(gates[1].sequences[0].token_ids) == len(PROMPT) + 28)
    kept = [gate.sequences[0].token_ids for gate in gates]
    assert kept[0] == kept[1]
    assert follower.worker.epoch == 1
    core.send(maskless_plan(29))
    wait_until(lambda: gates[1].steps == 29)
    core.send(Reset(2))
    wait_until(lambda: follower.worker.epoch == 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_any_failure_ends_a_rank_of_two(rank: int, core: Core, run: Run, tmp_path: Path) -> None:
    gates = [Gate(tmp_path, rank=number, size=2) for number in (0, 1)]
    workers = [run(gate, rank=number, size=2) for number, gate in enumerate(gates)]
    core.attach(workers[0].channel)
    gates[rank].errors = [MemoryError()]
    core.send(start_plan(1, PROMPT))
    assert isinstance(workers[rank].ended(), MemoryError)
    if rank == 1:
        sampled(core)  # the leader knows nothing of it: the supervisor ends the group


def test_the_leader_waits_for_a_rank_that_lags(core: Core, run: Run, tmp_path: Path) -> None:
    """And its wait is seen: it has said how long the step may take."""
    gates = [Gate(tmp_path, rank=rank, size=2) for rank in (0, 1)]
    leader, _ = (run(gate, rank=rank, size=2) for rank, gate in enumerate(gates))
    core.attach(leader.channel)
    gates[1].open.clear()
    total = 20 * MOST_PLANS_AHEAD
    bias = tuple((token, 0.5) for token in range(1000))  # so that few fit into the kernel's buffers
    for step in range(1, total + 1):
        plan = start_plan(step, PROMPT, sampling=SamplingParams(temperature=0, logit_bias=bias))
        released = columns.pack_ids([0] if step > 1 else [])
        core.send(msgspec.structs.replace(plan, released=released))
    seen: list[int] = []

    def stands_still() -> bool:
        seen.append(gates[0].steps)
        return leader.worker.progress._words[1] > 0 and len(seen) > 50 and len(set(seen[-50:])) == 1

    wait_until(stands_still)
    assert gates[0].steps < total
    assert leader.worker.progress._words[1] > 0
    gates[1].open.set()
    wait_until(lambda: gates[1].steps == gates[0].steps == total)


# ── processes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "code", "exit_code"),
    [("poison:token=6", "device_error", 70), ("oom:steps=1-3", "out_of_memory", 75)],
)
def test_exit_codes(fault: str, code: str, exit_code: int, core: Core, tmp_path: Path) -> None:
    process = WorkerProcess(stub_config(tmp_path), "--stub", environ={"TERN_FAULTS": fault})
    try:
        process.next(Ready)
        core.attach(process.channel)
        for epoch in (1, 2, 3):
            core.send(Reset(epoch))
            core.send(start_plan(epoch, PROMPT, epoch=epoch))
        failed = process.next(Failed)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.exit_code) == (code, exit_code)
        found, errors = process.wait()
        assert found == exit_code
        assert f"worker: warning: TERN_FAULTS is set: {fault}" in errors
    finally:
        process.close()


def test_a_broken_protocol_and_a_bad_fault(core: Core, tmp_path: Path) -> None:
    broken = WorkerProcess(stub_config(tmp_path), "--stub", environ={})
    bad = WorkerProcess(stub_config(tmp_path), "--stub", environ={"TERN_FAULTS": "melt:step=1"})
    try:
        broken.next(Ready)
        core.attach(broken.channel)
        core.send_bytes(b"\xff")
        assert broken.wait()[0] == 71
        failed = bad.next(Failed)
        assert isinstance(failed, Failed)
        assert "'melt:step=1' is not a fault: the kinds are raise, die" in failed.message
        code, errors = bad.wait()
        assert (code, errors) == (78, "")
    finally:
        broken.close()
        bad.close()


def test_a_process_beats_while_it_loads_and_rests_when_it_waits(tmp_path: Path) -> None:
    board = Board(1)
    process = WorkerProcess(stub_config(tmp_path), "--stub", environ={}, fd=board.fd)
    try:
        process.next(Ready)
        wait_until(lambda: board.read(0).beats >= 2 and board.read(0).budget_s == 0)
        process.channel.send(Quit())
        assert process.wait() == (0, "")
    finally:
        process.close()
        board.close()
