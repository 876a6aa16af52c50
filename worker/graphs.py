"""Decode steps as CUDA graphs, one step ahead of their results. Knows no model and no requests.

    sizes     a step of n rows runs in the smallest captured size ≥ n; the rows between only pad.
              Captured largest first, out of one pool of memory, so that smaller ones reuse its blocks.
    ahead     main   ─ step 0 ─ keep ─ step 1 ─ keep ─ step 2 ─ …     never waits for the host
              side            └─ copy to host 0 ─┘└─ copy to host 1
              host     launch 0   launch 1   collect 0   launch 2   collect 1

A step's tokens are overwritten by the next step, so `keep` first copies them, on the main stream, to one of
DEPTH buffers on the device; the side stream takes them to the host from there. A buffer is used again only
after the host has collected what was in it, so no stream ever has to wait for a copy. What else a step leaves
for the host is memory of its own, which is held until it is collected.

Steps that are not all decodes run outside of graphs, between them, on the same stream.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .launched import DEPTH

MOST_PADDING = 1 / 8
"""Of a large step: sizes are no further apart than this share."""


class Event(Protocol):
    def synchronize(self) -> None:
        """The host waits until what was before it on its stream is done."""

    def query(self) -> bool:
        """Whether it is, without waiting."""


class Stream(Protocol):
    def record(self) -> Event: ...

    def wait(self, event: Event) -> None:
        """What comes later on this stream waits for the event."""


class Device(Protocol):
    """What is needed of one, so that the logic is tested without."""

    @property
    def main(self) -> Stream: ...

    @property
    def side(self) -> Stream: ...

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record what `body` launches on the main stream; the result replays it there. All captures of a
        device share one pool of memory. `body` has run before, so that everything is compiled."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Tensor operations inside go to this stream."""


def sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows to capture: powers of two up to 8, then steps of 8, then of an eighth."""
    found, size = [], 1
    while size < max_rows:
        found.append(size)
        size = size * 2 if size < 8 else size + max(8, int(size * MOST_PADDING) // 8 * 8)
    return (*found, max_rows)


class DecodeGraphs:
    """Decode steps of any number of rows, over buffers that never move."""

    def __init__(self, device: Device, step: Callable[[int], None], captured: Sequence[int]) -> None:
        """`step(rows)` launches a step of the first `rows` rows of its buffers; it must not allocate what
        outlives it, nor read anything back. `captured`: ascending, see `sizes`."""
        self._device, self._step = device, step
        self._replays: dict[int, Callable[[], None]] = {}
        self.captured = tuple(captured)

    def capture(self, agree: Callable[[bool], bool] = bool) -> str:
        """All sizes, the largest first. The buffers must hold padding rows only. `agree`: whether the capture
        of a size has worked on every rank, given whether it has on this one; a step's sums are of all ranks,
        so all of them replay or none does. Where one fails, nothing is captured: returns why."""
        for rows in reversed(self.captured):
            self._run_eagerly(rows)
            why = "another rank's capture failed"
            try:
                self._replays[rows] = self._device.capture(lambda rows=rows: self._step(rows))  # type: ignore[misc]
            except RuntimeError as error:
                why = str(error)
            if not agree(rows in self._replays):
                self._replays.clear()
                self.captured = ()
                return f"a step of {rows} rows could not be captured: {why}"
        return ""

    def size(self, rows: int) -> int:
        """How many rows a step of `rows` computes; those behind must be padding."""
        return next((size for size in self.captured if size >= rows), rows)

    def run(self, rows: int) -> None:
        """Launch a step: a replay, or eagerly when it is larger than all that were captured."""
        replay = self._replays.get(self.size(rows))
        if replay is None:
            self._run_eagerly(rows)
        else:
            replay()

    def _run_eagerly(self, rows: int) -> None:
        with self._device.on(self._device.main):
            self._step(rows)


class StepsAhead:
    """Brings the tokens of launched steps to the host, in order."""

    def __init__(self, device: Device, tokens: Tensor, *, pinned: bool) -> None:
        """`tokens` int64 [max_rows]: where every step leaves what it sampled."""
        self._device, self._tokens = device, tokens
        self._kept = [torch.empty_like(tokens) for _ in range(DEPTH)]
        self._hosts = [
            torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=pinned, device="cpu")
            for _ in range(DEPTH)
        ]
        self._launched: list[_Launched] = []
        """Oldest first."""
        self._next = 0

    def __len__(self) -> int:
        """Steps to be collected."""
        return len(self._launched)

    def launch(self, step: Callable[[], Sequence[Tensor] | None], rows: int) -> None:
        """`step` launches on the main stream, and returns what else the host is to have of it: tensors that
        no later step writes to. At most DEPTH may be under way: collect first."""
        if len(self._launched) == DEPTH:
            raise RuntimeError(f"{DEPTH} steps are under way; collect one before launching another")
        device, buffer = self._device, self._next
        more = step() or ()
        self._next = (self._next + 1) % DEPTH
        with device.on(device.main):
            self._kept[buffer].copy_(self._tokens)
        device.side.wait(device.main.record())
        with device.on(device.side):
            self._hosts[buffer].copy_(self._kept[buffer], non_blocking=True)
            there = [tensor.to("cpu", non_blocking=True) for tensor in more]  # pinned, by torch
        self._launched.append(_Launched(buffer, rows, more, there, device.side.record()))

    def ready(self) -> bool:
        """Whether the oldest step's results are there, so that `collect` does not wait."""
        return self._launched[0].copied.query()

    def collect(self) -> tuple[Tensor, Sequence[Tensor]]:
        """int64 [rows] of the oldest step, on the host, once it is there, and what else it left. The caller's
        own copies."""
        oldest = self._launched[0]
        oldest.copied.synchronize()
        del self._launched[0]
        return self._hosts[oldest.buffer][: oldest.rows].clone(), oldest.there

    def abandon(self) -> None:
        """Wait for all that is under way, and forget it."""
        while self._launched:
            self.collect()


@dataclass(frozen=True, slots=True)
class _Launched:
    buffer: int
    rows: int
    more: Sequence[Tensor]
    """On the device: the copy may not have happened yet."""
    there: Sequence[Tensor]
    copied: Event


class CudaDevice:
    """Device, by torch.cuda, of the process's current GPU. `main` becomes the stream of all that this thread
    does: weights are loaded on it, and steps need no wait for them."""

    def __init__(self) -> None:
        self.main, self.side = CudaStream(), CudaStream()
        self.main.stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.set_stream(self.main.stream)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        collects = gc.isenabled()
        gc.disable()  # what is collected meanwhile may call what a capture does not allow
        # Not `torch.cuda.graph`, which collects garbage each time: seconds for all sizes. NCCL's own threads
        # may ask for their events meanwhile, so only this thread's calls are watched.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            body()
        finally:
            graph.capture_end()
            if collects:
                gc.enable()
        return graph.replay  # on the current stream, which is main

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        assert isinstance(stream, CudaStream)
        return nullcontext() if stream is self.main else torch.cuda.stream(stream.stream)


class CudaStream:
    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self.stream.wait_event(event)
