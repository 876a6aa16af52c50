"""The real engine as a simulated process, driven as process.py of the engine core drives it."""

from collections.abc import Callable
from functools import cache, partial
from random import Random
from typing import Any

from engine_core.engine import Engine
from engine_core.invariants import check, touched
from engine_core.request import Request
from protocol.config import EngineCoreConfig
from protocol.control import PeerGone
from protocol.errors import TernError
from protocol.grammar import GrammarReader
from protocol.messages import EngineMessage
from protocol.steps import (
    EngineToWorker,
    StepFailed,
    StepPlan,
)

from .network import Agenda, Connection
from .process import TURN_S, Process

_BESIDE_S, _PACE_S = (0.001, 0.02, 0.5), (*[0.0] * 99, 0.01)
_CHECK_EVERY = 8
"""Turns between two looks at the invariants."""


VOCABULARY = 2048, (2,)
"""Size and ends of the bundled model's, which is everybody's here."""


@cache
def reader_of(folder: str) -> GrammarReader:
    """Made once: it costs as much as minutes of an idle server."""
    return GrammarReader(folder, *VOCABULARY)


class Wire:
    """The engine core's end of one kind of connections."""

    def __init__(self, process: "EngineCore") -> None:
        self.dropped_frames = 0
        self.connections: dict[bytes, Connection] = {}
        self.inbox: list[tuple[bytes, Any]] = []
        self._process = process

    def arrive(self, peer: bytes, message: Any) -> None:
        self.inbox.append((peer, message))
        self._process.wake(self._process.agenda.now + TURN_S)

    def drain(self) -> list[tuple[bytes, Any]]:
        taken, self.inbox = self.inbox, []
        return taken

    def send(self, peer: bytes, message: EngineMessage | EngineToWorker) -> bool:
        self._process.note(message)
        self._process.count_send()
        connection = self.connections.get(peer)
        if connection is None or not connection.open:
            return False
        connection.down.send(message)
        return True

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()


class Beside:
    """Hands that do what takes long some time after they were asked to, and at a drawn pace."""

    def __init__(self, process: "EngineCore", draw: Random) -> None:
        self._process = process
        self._draw = draw
        self._worked_s = 0.0

    def now(self) -> float:
        self._worked_s += self._draw.choice(_PACE_S)
        return self._worked_s

    def worked_s(self) -> float:
        return self._worked_s

    def do(self, work: Callable[[], None]) -> None:
        at = self._process.agenda.now + self._draw.choice(_BESIDE_S)
        self._process.agenda.at(at, b"grammar", partial(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        process = self._process
        if process.alive and process.hung:
            process.agenda.after(_BESIDE_S[0], b"grammar", partial(self._do, work))
        elif process.alive:
            work()
            process.wake(process.agenda.now + TURN_S)


class EngineCore(Process):
    """The real engine, driven as process.py drives it."""

    kind = "engine_core"

    def __init__(
        self,
        agenda: Agenda,
        draw: Random,
        config: EngineCoreConfig,
        on_exit: Callable[[Process, int], object],
        on_trouble: Callable[[list[Request], bool], object],
    ) -> None:
        """`on_trouble(requests, by_itself)`: these were computed when something failed."""
        super().__init__(agenda, config.incarnation, on_exit)
        self.clients, self.workers = Wire(self), Wire(self)
        self.hands = Beside(self, draw)
        self.engine = Engine(config, self.clients, self.workers, lambda: agenda.now, self.hands)
        self.failed: dict[tuple[bytes, int], int] = {}
        """By peer and request: outputs that one that ended with an error had by then."""
        fail = self.engine.desk.fail

        def note_failure(request: Request, error: TernError, *, trusted: bool = True) -> None:
            self.failed[request.client.peer, request.request_id] = request.num_output_tokens
            fail(request, error, trusted=trusted)

        self.engine.desk.fail = note_failure  # type: ignore[method-assign]
        self.news: list[PeerGone] = []
        self._on_trouble = on_trouble
        self._turns = 0
        self._used: dict[int, set[int]] = {}
        """By step in flight: blocks."""

        if config.tokenizer:
            self.engine.grammars._reader = reader_of(config.tokenizer)
            self.engine.grammars._vocabulary = VOCABULARY

    def tell(self, news: PeerGone) -> None:
        self.news.append(news)
        self.wake(self.agenda.now + TURN_S)

    def turn(self) -> None:
        engine = self.engine
        news, self.news = self.news, []
        for one in news:
            if engine.scheduler is not None:
                involved = [request for step in engine.scheduler.in_flight for request in step.requests]
                self._on_trouble(list(dict.fromkeys(involved)), one.crashed)
            engine.on_peer_gone(one.incarnation, crashed=one.crashed, cause=one.cause)
            self._check_gone(one.incarnation)
        if self.workers.inbox:
            for _, message in self.workers.inbox:
                if isinstance(message, StepFailed) and engine.scheduler is not None:
                    self._on_trouble(list(engine.scheduler.running), True)
            engine.collect()
        if self.clients.inbox:
            engine.receive()
        engine.advance()
        self._turns += 1
        if self._turns % _CHECK_EVERY == 0:
            self.check()
        if (deadline := engine.next_deadline()) is not None:
            self.wake(max(deadline, self.agenda.now) + 0.001)

    def check(self) -> None:
        scheduler = self.engine.scheduler
        if scheduler is None:
            return
        check(scheduler)
        for step in scheduler.in_flight:
            used = self._used.get(step.plan.step, set())
            assert used.isdisjoint(scheduler.kv.pool.free), "a block is free while a step uses it"

    def note(self, message: EngineMessage | EngineToWorker) -> None:
        """Remember which blocks a step reads or writes. Plans are sent as soon as they are made."""
        scheduler = self.engine.scheduler
        if isinstance(message, StepPlan) and scheduler is not None:
            there = {step.plan.step for step in scheduler.in_flight}
            self._used = {number: blocks for number, blocks in self._used.items() if number in there}
            self._used[message.step] = touched(scheduler, scheduler.in_flight[-1])

    def _check_gone(self, incarnation: int) -> None:
        """No request of a dead client is computed any more, unless it has a key."""
        if (scheduler := self.engine.scheduler) is not None:
            there = [*scheduler.running, *scheduler.waiting, *scheduler.suspects]
            assert incarnation not in {one.client.incarnation for one in there}, "a dead client's request"

    def close(self) -> None:
        self.clients.close()
        self.workers.close()
