"""Graphs and the steps ahead of their results, on a device that executes as late and as oddly as it may."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.graphs import DecodeGraphs, StepsAhead, sizes
from worker.launched import DEPTH


class FakeEvent:
    def __init__(self, device: "FakeDevice") -> None:
        self._device = device
        self.reached = False

    def synchronize(self) -> None:
        self._device.run_until(lambda: self.reached)

    def query(self) -> bool:
        return self.reached


class FakeStream:
    """Work waits here until the device takes it up."""

    def __init__(self, device: "FakeDevice") -> None:
        self._device = device
        self.queue: deque[tuple[Callable[[], object], FakeEvent | None]] = deque()
        """(work, what it waits for)"""

    def submit(self, work: Callable[[], object], after: FakeEvent | None = None) -> None:
        self.queue.append((work, after))

    def record(self) -> FakeEvent:
        event = FakeEvent(self._device)
        self.submit(lambda: setattr(event, "reached", True))
        return event

    def wait(self, event: object) -> None:
        assert isinstance(event, FakeEvent)
        self.submit(lambda: None, event)


class Deferred(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In-place copies are queued instead of made."""

    def __init__(self, stream: FakeStream) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stream = stream

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func is torch.ops.aten.copy_.default
        self._stream.submit(lambda: func(*args, **(kwargs or {})))
        return args[0]


class FakeDevice:
    """Streams run only when the host waits, taking turns by chance; each is in order and heeds its events."""

    def __init__(self, seed: int = 0) -> None:
        self.main, self.side = FakeStream(self), FakeStream(self)
        self.captured: list[list[int]] = []
        """What each capture recorded."""
        self.recording: list[int] | None = None
        self._chance = random.Random(seed)

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            ready = [s for s in (self.main, self.side) if s.queue and self._may_run(s)]
            assert ready, "the streams wait for each other"
            work, _ = self._chance.choice(ready).queue.popleft()
            work()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        self.recording = recorded = list[int]()
        try:
            body()
        finally:
            self.recording = None
        self.captured.append(recorded)
        return lambda: self.replayed.append(recorded[0])

    replayed: list[int]

    @contextmanager
    def on(self, stream: object) -> Iterator[None]:
        assert isinstance(stream, FakeStream)
        with Deferred(stream):
            yield

    @staticmethod
    def _may_run(stream: FakeStream) -> bool:
        after = stream.queue[0][1]
        return after is None or after.reached


def test_sizes_are_few_and_close() -> None:
    assert sizes(1) == (1,)
    assert sizes(8) == (1, 2, 4, 8)
    assert sizes(20) == (1, 2, 4, 8, 16, 20)
    found = sizes(256)
    assert found[-1] == 256
    assert len(found) < 40
    for small, large in pairwise(found[4:]):
        assert large - small <= max(8, small / 8)


def graphs(captured: tuple[int, ...]) -> tuple[FakeDevice, DecodeGraphs, list[int]]:
    device, eager = FakeDevice(), list[int]()
    device.replayed = []

    def step(rows: int) -> None:
        (eager if device.recording is None else device.recording).append(rows)

    made = DecodeGraphs(device, step, captured)
    made.capture()
    return device, made, eager


def test_the_largest_is_captured_first_and_has_run_before() -> None:
    device, _, eager = graphs((1, 2, 4))
    assert device.captured == [[4], [2], [1]]
    assert eager == [4, 2, 1]


def test_a_step_runs_in_the_smallest_size_that_holds_it() -> None:
    device, made, eager = graphs((1, 2, 4, 8))
    for rows in (1, 2, 3, 5, 8):
        made.run(rows)
    assert device.replayed == [1, 2, 4, 8, 8]
    assert [made.size(rows) for rows in (3, 9)] == [4, 9]
    del eager[:]
    made.run(9)
    assert eager == [9], "larger than all: as it is"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_where_one_capture_fails_nothing_is_replayed_and_it_is_said_why(elsewhere: bool) -> None:
    """On this rank, or on another one: sums are of all ranks, so all of them replay or none."""
    device, ran = FakeDevice(), []
    device.replayed = []

    def step(rows: int) -> None:
        if rows == 2 and device.recording is not None and not elsewhere:
            raise RuntimeError("operation not permitted when stream is capturing")
        ran.append(rows)

    made = DecodeGraphs(device, step, (1, 2, 4))
    asked: list[bool] = []

    def agree(worked: bool) -> bool:
        asked.append(worked)
        return worked and not (elsewhere and len(asked) == 2)

    why = made.capture(agree)
    assert why.startswith("a step of 2 rows could not be captured: ")
    assert why.endswith("another rank's capture failed" if elsewhere else "when stream is capturing")
    assert asked == [True, elsewhere], "all ranks ask after each size, and stop at the same"
    made.run(1)
    assert ran[-1] == 1
    assert not device.replayed


@pytest.mark.parametrize("seed", range(20))
def test_every_result_is_its_own_steps(seed: int) -> None:
    """However late the side stream copies, no later step's tokens come out."""
    device, tokens = FakeDevice(seed), torch.zeros(3, dtype=torch.int64)
    ahead = StepsAhead(device, tokens, pinned=False)

    def launch(number: int) -> None:
        def step() -> None:
            device.main.submit(lambda: tokens.copy_(torch.full((3,), number)))

        ahead.launch(step, rows=2)

    launch(0)
    results: list[Tensor] = []
    for number in range(1, 12):
        launch(number)
        results.append(ahead.collect()[0])
    results.append(ahead.collect()[0])
    assert [result.tolist() for result in results] == [[number] * 2 for number in range(12)]
    assert len(ahead) == 0


def test_the_next_step_is_launched_before_the_last_is_read() -> None:
    """Launching waits for nothing: nothing has run when DEPTH steps are under way."""
    device, ran = FakeDevice(), []
    ahead = StepsAhead(device, torch.zeros(1, dtype=torch.int64), pinned=False)
    for number in range(DEPTH):
        ahead.launch(lambda number=number: device.main.submit(lambda: ran.append(number)), 1)  # type: ignore[misc]
    assert not ran
    with pytest.raises(RuntimeError, match="collect one"):
        ahead.launch(lambda: None, 1)
    ahead.collect()
    assert ran[0] == 0
