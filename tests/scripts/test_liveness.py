"""Slow, hung or stopped, in virtual time; and the watch over real processes, which are fakes (fakes.py)."""

import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.progress import Board, Reading
from scripts.liveness import HANG_BUDGETS, LOOK_INTERVAL_S, Liveness, Verdict
from scripts.watch import Watch, waited_for_cpu_s

if TYPE_CHECKING:
    from tests.scripts.conftest import StartFakes

FINE, SLOW, HUNG, STOPPED = Verdict.FINE, Verdict.SLOW, Verdict.HUNG, Verdict.STOPPED
TICK = LOOK_INTERVAL_S
BUSY = Reading(beats=7, budget_s=1.0)
IDLE = Reading(beats=7, budget_s=0.0)


def looks(life: Liveness, reading: Reading, count: int, *, since_s: float = TICK) -> list[Verdict]:
    """Verdicts of some looks, of which the first sets the mark."""
    return [life.look(reading, 0.0, since_s) for _ in range(count)]


def test_a_hang_is_slow_first_and_then_hung() -> None:
    verdicts = looks(Liveness(), BUSY, 10)
    assert verdicts == [FINE] * 5 + [SLOW] + [FINE] * 3 + [HUNG]


def test_who_waits_for_work_is_never_hung() -> None:
    assert looks(Liveness(), IDLE, 1000) == [FINE] * 1000


def test_a_beat_wipes_the_slate() -> None:
    life = Liveness()
    for beats in range(20):
        assert looks(life, Reading(beats, 1.0), 6) == [FINE] * 5 + [SLOW]
    assert looks(life, IDLE, 1) == [FINE]
    assert looks(life, Reading(8, 1.0), 5) == [FINE] * 5


def test_the_budget_is_the_rows_own() -> None:
    assert HUNG not in looks(Liveness(), Reading(7, 100.0), 4 * 200)
    assert HUNG in looks(Liveness(), Reading(7, 100.0), 4 * 201)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The whole tree was stopped, or the machine slept, for an hour."""
    life = Liveness()
    assert looks(life, BUSY, 2) == [FINE] * 2
    assert looks(life, BUSY, 3, since_s=3600) == [FINE] * 3


def test_time_spent_waiting_for_a_cpu_does_not_count() -> None:
    life, waited_s = Liveness(), 100.0
    for _ in range(1000):
        assert life.look(BUSY, waited_s, TICK) is FINE
        waited_s += TICK


def test_a_wait_that_is_reported_late_is_taken_off_late() -> None:
    life = Liveness()
    looks(life, BUSY, 5)
    assert life.stall_s == 1.0
    assert life.look(BUSY, 0.9, TICK) is FINE
    assert life.stall_s == pytest.approx(0.35)


def test_a_process_whose_waits_cannot_be_read_any_more_gets_no_penalty() -> None:
    life = Liveness()
    life.look(BUSY, 1000.0, TICK)
    assert life.look(BUSY, 0.0, TICK) is FINE


def test_a_stop_that_lasts() -> None:
    life = Liveness()
    life.on_stop()
    assert looks(life, IDLE, 2) == [FINE, STOPPED]


def test_a_stop_that_is_continued_in_time_leaves_nothing() -> None:
    life = Liveness()
    for _ in range(10):
        life.on_stop()
        assert looks(life, BUSY, 1, since_s=3600) == [FINE]
        life.on_continue()
    assert looks(life, BUSY, 5) == [FINE] * 5


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.3, 2.0]), st.floats(0, 5), st.floats(0, 1)),
        max_size=60,
    )
)
def test_nobody_is_hung_before_its_time(history: Iterable[tuple[int, float, float, float]]) -> None:
    """Whatever the rows, gaps and waits: a hang needs that many looks at an unchanged row."""
    life, waited_s = Liveness(), 0.0
    same, before = 0, None
    for beats, budget_s, since_s, starved_s in history:
        waited_s += starved_s
        same = same + 1 if beats == before and budget_s else 0
        before = beats
        if life.look(Reading(beats, budget_s), waited_s, since_s) is HUNG:
            assert same * TICK > HANG_BUDGETS * budget_s


def test_the_waits_of_all_threads_count() -> None:
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait)
        schedules = [path.read_text() for path in Path("/proc/self/task").glob("*/schedstat")]
        own = int(Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()[1])
        others = sum(int(text.split()[1]) for text in schedules) - own
        assert waited_for_cpu_s(os.getpid()) >= (own + others) / 1e9
        gate.set()
    assert waited_for_cpu_s(2**22 + 1) == 0.0  # no such process


def test_a_watch_that_is_off_never_looks() -> None:
    board = Board(1)
    assert Watch(board, 5.0, enabled=True).next_look == 5.0
    assert Watch(board, 5.0, enabled=False).next_look == float("inf")
    board.close()


# ── real processes ──────────────────────────────────────────────────────────────────────────────


def test_a_hang_is_killed_as_a_group_and_is_nobodys_fault(start: "StartFakes") -> None:
    stack = start(rank1="hang_once")
    found = stack.program.wait_for(r"rank1 \(pid (\d+)\) made no progress for \d+\.\d s; killing it")
    stack.program.wait_for(
        rf"rank1 \(pid {found[1]}\) was killed by SIGKILL \(it made no progress .*again now"
    )
    stack.program.wait_for("worker is ready again")
    assert stack.ends(signal.SIGTERM) == 0
    assert "rank1 has been at one thing for" in stack.program.output
    assert 'fakes.py", line' in stack.program.output  # its stacks
    assert "crashed=False, cause='was killed by SIGKILL (it made no progress for" in stack.told("core")


def test_what_is_slow_is_left_alone(start: "StartFakes") -> None:
    stack = start(rank1="slow_once")
    stack.program.wait_for("rank1 has been at one thing for")
    stack.program.wait_for(r'fakes\.py", line \d+ in be_slow')
    assert stack.ends(signal.SIGTERM) == 0
    assert "killing it" not in stack.program.output


@pytest.mark.parametrize("kind", ["engine_core", "worker", "frontend"])
def test_what_is_stopped_is_replaced(start: "StartFakes", kind: str) -> None:
    stack = start()
    stack.kill(kind, 0, signal.SIGSTOP)
    stack.program.wait_for("is stopped and was not continued; killing it")
    stack.program.wait_for(f"{kind} is ready again")
    assert stack.ends(signal.SIGTERM) == 0


def test_a_whole_tree_that_is_stopped_and_continued_restarts_nothing(start: "StartFakes") -> None:
    stack = start()
    before = stack.pids
    everyone = [pid for group in before.values() for pid in group]
    for _ in range(3):
        os.killpg(stack.program.pid, signal.SIGSTOP)
        stack.program.wait_until(lambda: all(_state(pid) == "T" for pid in everyone), "all are stopped")
        os.killpg(stack.program.pid, signal.SIGCONT)
    # By the time of this verdict, a wrong one on any other would have been spoken.
    stack.kill("worker", 1, signal.SIGSTOP)
    stack.program.wait_for("worker is ready again")
    assert stack.program.output.count("killing it") == 1
    assert (before["engine_core"], before["frontend"]) == (stack.pids["engine_core"], stack.pids["frontend"])


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
