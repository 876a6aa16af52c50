"""The number of threads follows what was measured."""

from collections.abc import Iterator

import pytest
import torch

from worker.threads import StepThreads


class Machine:
    """Steps take what a table says, for the number of threads that torch is set to."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.pool: list[int] = []
        """What our own pool was set to."""

    def steps(self, threads: StepThreads, num_tokens: int, count: int) -> list[int]:
        """The number of threads of each step."""
        chosen = []
        for _ in range(count):
            threads.begin(num_tokens)
            chosen.append(torch.get_num_threads())
            assert self.pool[-1] == chosen[-1]
            self.now += self.seconds[chosen[-1]]
            threads.end()
        return chosen


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on(machine: Machine, most: int = 2, num_weights: int = 1_000_000) -> StepThreads:
    return StepThreads(most, num_weights, machine.pool.append, lambda: machine.now)


def test_before_anything_is_measured_small_steps_leave_the_other_cores_alone() -> None:
    machine = Machine({1: 1.0, 2: 1.0})
    threads = on(machine)
    assert [machine.steps(threads, count, 1)[0] for count in (1, 31, 64, 1000, 1)] == [1, 1, 2, 2, 1]
    assert machine.steps(on(machine, num_weights=1_000_000_000), 1, 1) == [2], "a token of a large model"


@pytest.mark.parametrize("faster", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 128])
def test_the_faster_number_is_found_and_the_other_is_tried_rarely(faster: int, num_tokens: int) -> None:
    machine = Machine({faster: 1.0, 3 - faster: 1.5})
    threads = on(machine)
    machine.steps(threads, num_tokens, 60)
    chosen = machine.steps(threads, num_tokens, 480)
    assert 0.9 < chosen.count(faster) / 480 < 1


def test_a_number_that_is_far_slower_is_tried_ever_more_rarely() -> None:
    machine = Machine({1: 2.0, 2: 1.0})
    threads = on(machine)
    chosen = machine.steps(threads, 128, 3000)
    assert [chosen[:1500].count(1), chosen[1500:].count(1)] == [5, 1]
    machine.seconds = {1: 2.0, 2: 6.0}
    assert machine.steps(threads, 128, 60)[-1] == 1, "it is left at once when it gets worse"
    machine.seconds = {1: 2.0, 2: 1.0}
    assert machine.steps(threads, 128, 300)[-1] == 2, "and tried again soon"


def test_it_follows_a_machine_that_changes() -> None:
    machine = Machine({1: 1.5, 2: 1.0})
    threads = on(machine)
    machine.steps(threads, 128, 100)
    assert machine.steps(threads, 128, 1) == [2]
    machine.seconds = {1: 1.5, 2: 4.0}  # somebody else has begun to use the other core
    assert machine.steps(threads, 128, 60)[-1] == 1
    machine.seconds = {1: 1.5, 2: 1.0}
    assert machine.steps(threads, 128, 200)[-1] == 2


def test_a_single_thread_is_never_measured() -> None:
    machine = Machine({1: 1.0})
    assert set(machine.steps(on(machine, most=1), 128, 100)) == {1}
