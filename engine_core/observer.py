"""Observer: what people see of this engine core: statistics, a picture when asked, and what befell it.

It reads what the others hold and changes nothing. When nobody asks it costs a tuple in a ring per step
(meter.py). However many ask, making pictures takes a hundredth of the time at most.
"""

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, count, islice

from msgspec import structs

from protocol import columns
from protocol.kv_groups import NO_BLOCK
from protocol.messages import EngineStats
from protocol.observation import (
    CACHED,
    FREE,
    MOST_CELLS,
    MOST_VIEWS,
    SHARED,
    UNLISTED,
    Event,
    EventKind,
    RequestView,
    Snapshot,
    Stage,
)

from .clients import ClientLink
from .desk import Desk
from .meter import Meter
from .request import Request
from .scheduler import Scheduler
from .worker_group import WorkerGroup

MOST_EVENTS = 64
"""That a client which attaches is told of."""
LEAST_PAUSE_S = 0.1
PAUSE_PER_COST = 100
"""A picture is shown again for so long, and so many times as long as it took to make."""
MOST_CAUSE_CHARS = 256


class Observer:
    """One per engine core. Before a worker is ready, there is nothing to see but events."""

    def __init__(
        self,
        incarnation: int,
        clock: Callable[[], float],
        link: ClientLink,
        desk: Desk,
        meter: Meter,
        workers: WorkerGroup,
    ) -> None:
        self._incarnation = incarnation
        self._clock = clock
        self._link = link
        self._desk = desk
        self._meter = meter
        self._workers = workers
        self._events: deque[tuple[float, Event]] = deque(maxlen=MOST_EVENTS)
        """With the time at which each happened."""
        self._numbers = count()
        self._lost_at: float | None = None
        self._snapshot: Snapshot | None = None
        self._next_at = 0.0
        self.note("engine_core_started")

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def note(self, kind: EventKind, num_requests: int = 0, *, subject: str = "", cause: str = "") -> None:
        """Tell every client."""
        now, duration_s = self._clock(), 0.0
        if kind == "workers_lost":
            self._lost_at = now
        elif kind == "workers_restarted" and self._lost_at is not None:
            duration_s, self._lost_at = now - self._lost_at, None
        event = Event(
            self._incarnation,
            next(self._numbers),
            kind,
            num_requests=num_requests,
            duration_s=duration_s,
            subject=subject,
            cause=cause[:MOST_CAUSE_CHARS],
        )
        self._events.append((now, event))
        for client in self._desk.clients.values():
            self._link.send(client.peer, event)

    def note_workers(self) -> None:
        """A group is there: the first one, or another."""
        scheduler = self._desk.scheduler
        num_requests = scheduler.num_running + scheduler.num_waiting if scheduler is not None else 0
        self.note("workers_ready" if self._lost_at is None else "workers_restarted", num_requests)

    def tell(self, peer: bytes) -> None:
        """What has happened, to a client that has just attached."""
        now = self._clock()
        for at, event in self._events:
            self._link.send(peer, structs.replace(event, age_s=now - at))

    # ── numbers ─────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> EngineStats:
        """Gauges and counters since this engine core started."""
        scheduler, meter, desk = self._desk.scheduler, self._meter, self._desk
        if scheduler is None:
            return EngineStats()
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_blocks=scheduler.kv.pool.num_free + len(scheduler.kv.pool.fenced),
            num_blocks=scheduler.kv.pool.num_blocks,
            steps=meter.steps,
            prompt_tokens=meter.prompt_tokens,
            generation_tokens=meter.generation_tokens,
            prefix_cache_queries=scheduler.prefix_queries,
            prefix_cache_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            epochs=self._workers.num_epochs,
            dropped_frames=self._link.dropped_frames + self._workers.link.dropped_frames,
            stale_messages=self._workers.stale_messages,
            resubmissions=desk.resubmissions,
            crashed_requests=desk.crashed_requests,
            detached=len(desk.kept),
            queue_times=meter.queue_times.distribution(),
            prefill_times=meter.prefill_times.distribution(),
            inference_times=meter.inference_times.distribution(),
            step_tokens=meter.step_tokens.distribution(),
        )

    # ── a picture ───────────────────────────────────────────────────────────────────────────────

    def snapshot(self, nonce: int) -> Snapshot:
        """Of now, or of a moment ago."""
        now = self._clock()
        if self._snapshot is None or now >= self._next_at:
            self._snapshot = self._look()
            self._next_at = now + max(LEAST_PAUSE_S, PAUSE_PER_COST * (self._clock() - now))
        return structs.replace(self._snapshot, nonce=nonce)

    def _look(self) -> Snapshot:
        scheduler, meter = self._desk.scheduler, self._meter
        if scheduler is None:
            return Snapshot(0, self._workers.epoch)
        listed = list(islice(_in_order(scheduler), MOST_VIEWS))
        stride = -(-scheduler.kv.pool.num_blocks // MOST_CELLS)
        timings = list(meter.timings)
        return Snapshot(
            nonce=0,
            epoch=self._workers.epoch,
            requests=tuple([_view(scheduler, request) for request in listed]),
            cell_stride=stride,
            cells=_cells(scheduler, listed, stride).tobytes(),
            num_steps=meter.steps,
            step_seconds=columns.pack(columns.FLOAT32, [seconds for seconds, _, _ in timings]),
            step_decodes=columns.pack_ids([decodes for _, decodes, _ in timings]),
            step_prompt_tokens=columns.pack_ids([tokens for _, _, tokens in timings]),
        )


def _in_order(scheduler: Scheduler) -> Iterator[Request]:
    """Those that run, by arrival; then those that are next."""
    running = sorted(scheduler.running, key=lambda request: request.arrival)
    there = set(running)
    waiting = [one for one in chain(scheduler.suspects, scheduler.waiting) if one not in there]
    return chain(running, heapq.nsmallest(MOST_VIEWS, waiting, key=lambda request: request.order))


def _view(scheduler: Scheduler, request: Request) -> RequestView:
    computed = scheduler.running.num_computed_tokens(request)
    if request.slot < 0:
        stage = Stage.WAITING
    else:
        stage = Stage.PREFILLING if request in scheduler.running.prefilling else Stage.DECODING
    return RequestView(
        number=request.arrival,
        stage=stage,
        num_prompt_tokens=request.num_prompt_tokens,
        num_output_tokens=request.num_output_tokens,
        max_total_tokens=request.max_total_tokens,
        num_computed_tokens=computed,
        num_cached_tokens=max(request.num_cached_tokens, 0),
        num_blocks=sum([len(table) - first for table, first in _tables(request)]),
        constrained=request.grammar is not None,
    )


def _tables(request: Request) -> Iterator[tuple[list[int], int]]:
    return zip(request.block_tables, request.first_blocks, strict=True)


def _cells(scheduler: Scheduler, listed: list[Request], stride: int) -> "array[int]":
    """See Snapshot.cells."""
    pool, is_cached = scheduler.kv.pool, scheduler.kv.prefix_cache.is_cached
    references = pool.references
    of_count = {1: UNLISTED, 0: FREE}
    cells = array(columns.INT32, [of_count.get(held, SHARED) for held in references[::stride]])
    for cell, block in enumerate(range(0, pool.num_blocks, stride)):
        if cells[cell] == FREE and is_cached(block):
            cells[cell] = CACHED
    for index, request in enumerate(listed):
        for table, first in _tables(request):
            for block in table[first:]:
                if block != NO_BLOCK and not block % stride and references[block] == 1:
                    cells[block // stride] = index
    return cells
