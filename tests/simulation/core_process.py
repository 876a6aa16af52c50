"""The real engine as a simulated process, driven as process.py of the engine core drives it."""

from collections.abc import Callable
from typing import Any

from engine_core.engine import Engine
from engine_core.grammar import Inline
from engine_core.invariants import check, touched
from engine_core.request import Request
from protocol.config import EngineCoreConfig
from protocol.control import PeerGone
from protocol.messages import EngineMessage
from protocol.steps import (
    EngineToWorker,
    StepFailed,
    StepPlan,
)

from .network import Agenda, Connection
from .process import TURN_S, Process

_CHECK_EVERY = 8
"""Turns between two looks at the invariants."""


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


class EngineCore(Process):
    """The real engine, driven as process.py drives it."""

    kind = "engine_core"

    def __init__(
        self,
        agenda: Agenda,
        config: EngineCoreConfig,
        on_exit: Callable[[Process, int], object],
        on_trouble: Callable[[list[Request], bool], object],
    ) -> None:
        """`on_trouble(requests, by_itself)`: these were computed when something failed."""
        super().__init__(agenda, config.incarnation, on_exit)
        self.clients, self.workers = Wire(self), Wire(self)
        self.engine = Engine(config, self.clients, self.workers, lambda: agenda.now, Inline())
        self.news: list[PeerGone] = []
        self._on_trouble = on_trouble
        self._turns = 0
        self._used: dict[int, set[int]] = {}
        """By step in flight: blocks."""

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
                    self._on_trouble(list(engine.scheduler.running()), True)
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
            there = [*scheduler.running(), *scheduler.waiting, *scheduler.suspects]
            assert incarnation not in {one.client.incarnation for one in there}, "a dead client's request"

    def close(self) -> None:
        self.clients.close()
        self.workers.close()
