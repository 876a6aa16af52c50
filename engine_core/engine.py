"""Engine: receive → schedule → dispatch → collect → publish. Ties the state machines to clients and workers.

Knows neither sockets nor the clock, only two links and a function that tells the time, so that it runs
under a simulator as it runs in a process (process.py). Everything it holds can be rebuilt: requests by
their clients, KV by computing it again.
"""

import itertools
from collections.abc import Callable
from typing import assert_never

from protocol.config import EngineCoreConfig
from protocol.errors import NoTokenAllowed
from protocol.messages import (
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    AttachRefused,
    Control,
    ControlResult,
    EngineStats,
    Leave,
    Ping,
    Pong,
    Submit,
    Suspended,
)
from protocol.observation import Inspect
from protocol.sockets import fingerprint
from protocol.steps import StepFailed, StepResult, WorkerReady, WorkerReply

from .clients import Client, ClientLink
from .desk import Desk
from .finishing import deliver, deliver_forced, row_error
from .grammar import Grammars, Hands
from .journal import Journal, NoJournal, Submitted
from .meter import Meter
from .observer import Observer
from .recovery import Recovery
from .request import Request, State
from .scheduler import Scheduler
from .worker_group import WorkerGroup, WorkerLink

CUT_PATIENCE_S = 2.0
"""For the supervisor to say that the workers are dead, when they cannot be reached."""


class LinkCut(Exception):
    """The workers live and cannot be reached. Only a new engine core brings them back."""


class Engine:
    """One engine core. Feed it with what arrives, and with what the supervisor says; then let it advance."""

    def __init__(
        self,
        config: EngineCoreConfig,
        clients: ClientLink,
        workers: WorkerLink,
        clock: Callable[[], float],
        hands: Hands,
    ) -> None:
        """`clock` gives seconds that never go back. `hands` do what grammars need."""
        self.config = config
        self.link = clients
        self.clock = clock
        self.workers = WorkerGroup(workers, config.incarnation)
        options = config.scheduler
        self.depth = 2 if options.async_scheduling else 1
        self.meter = Meter(options.inter_token_target_ms / 1000, options.max_num_batched_tokens)
        self.cut_at: float | None = None
        """Since when the workers cannot be reached."""
        self.grammars = Grammars(config.tokenizer, hands)
        self.desk = Desk(config, clients, self.meter, clock, self.grammars)
        self.observer = Observer(config.incarnation, clock, clients, self.desk, self.meter, self.workers)
        self.asked: dict[int, tuple[bytes, int]] = {}
        """Of controls that the workers are working on: (peer, the peer's nonce)."""
        self.nonces = itertools.count()
        self.journal = Journal(config.journal, config.journal_bytes) if config.journal else NoJournal()
        self.recovery = Recovery(config, self.workers, self.desk, self.meter, self.observer, self.journal)

    @property
    def scheduler(self) -> Scheduler | None:
        """None until a worker has said what it can do."""
        return self.desk.scheduler

    # ── the loop's body ─────────────────────────────────────────────────────────────────────────

    def advance(self) -> None:
        """To be called after `receive` or `collect`, or when a deadline has passed: schedule, dispatch,
        publish."""
        self.desk.expire(self.clock())
        self._take_masks()
        self.dispatch()
        self.publish()
        self._watch_the_link()

    def collect(self) -> None:
        """Results of the workers → tokens of the requests."""
        for event in self.workers.receive():
            match event:
                case StepResult():
                    self._take_result(event)
                case StepFailed():
                    self.recovery.on_step_failed(event)
                case WorkerReady():
                    self.recovery.on_ready(event)
                    for client in self.desk.clients.values():
                        self._greet(client)
                case WorkerReply():
                    if asker := self.asked.pop(event.nonce, None):
                        self.link.send(asker[0], ControlResult(asker[1], event.ok, event.message))
                case _:
                    assert_never(event)

    def receive(self) -> None:
        """Messages of the clients → requests."""
        for peer, message in self.link.drain():
            match message:
                case Submit():
                    request = self.desk.submit(peer, message)
                    if request is not None:
                        self.journal.write(Submitted(request.client.name, message))
                case Abort():
                    self.desk.abort(peer, message)
                case Leave():
                    self.desk.leave(peer, message)
                case Ping():
                    self.link.send(peer, Pong(message.nonce, self.workers.epoch, self.stats()))
                case Inspect():
                    self.link.send(peer, self.observer.snapshot(message.nonce))
                case Attach():
                    self._attach(peer, message)
                case Control():
                    self._control(peer, message)
                case _:
                    assert_never(message)

    def dispatch(self) -> None:
        """Plan and send steps, up to one ahead of the results."""
        scheduler = self.scheduler
        if scheduler is None or not self.workers.attached:
            return
        if (masks := scheduler.masks()) is not None:
            self.workers.dispatch(masks)
            self.journal.write(masks)
        running = scheduler.running
        while len(scheduler.in_flight) < self.depth:
            soon = min(len(running.free_slots), scheduler.num_waiting)
            budget = self.meter.prompt_budget(len(running.prefilling) + soon, len(running.decoding))
            planned = scheduler.plan(budget)
            if planned is None:
                return
            self.workers.dispatch(planned.plan)
            self.meter.begin_step(self.clock())
            self.desk.begun(planned.chunks)
            self.journal.write(planned.plan)

    def publish(self) -> None:
        """One message per client for whatever has happened."""
        step = self.meter.steps
        for client in list(self.desk.clients.values()):
            for outputs in client.take_outputs(self.workers.epoch, step):
                if not self.link.send(client.peer, outputs):
                    self.desk.forget(client)
                    break
        self.desk.nobody.take_outputs(0, 0)
        self.journal.flush()

    def next_deadline(self) -> float | None:
        """When `advance` has something to do although nothing has arrived."""
        cut = None if self.cut_at is None else self.cut_at + CUT_PATIENCE_S
        deadlines = (self.desk.next_deadline(), cut)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _watch_the_link(self) -> None:
        """Raises LinkCut."""
        if not self.workers.cut:
            self.cut_at = None
        elif self.cut_at is None:
            self.cut_at = self.clock()
        elif self.clock() >= self.cut_at + CUT_PATIENCE_S:
            raise LinkCut("the workers cannot be reached any more, and nobody says that they are dead")

    def close(self) -> None:
        """Finish the recording."""
        self.journal.close()

    # ── clients ─────────────────────────────────────────────────────────────────────────────────

    def _attach(self, peer: bytes, attach: Attach) -> None:
        if (attach.protocol_version, attach.fingerprint) != (PROTOCOL_VERSION, fingerprint()):
            message = (
                f"client {attach.name!r} speaks protocol {attach.protocol_version}/{attach.fingerprint}, "
                f"this engine core {PROTOCOL_VERSION}/{fingerprint()}: install the same version on both sides"
            )
            self.link.send(peer, AttachRefused(PROTOCOL_VERSION, fingerprint(), message))
            return
        if peer not in self.desk.clients:
            self.desk.forget_the_vanished(Pong(0, self.workers.epoch, self.stats()))
            self.desk.clients[peer] = Client(peer, attach.name, attach.incarnation)
            self.observer.tell(peer)
        self._greet(self.desk.clients[peer])

    def _greet(self, client: Client) -> None:
        """Tell a client the facts; before a worker is ready there are none, and it waits."""
        if self.workers.facts is not None:
            facts, epoch = self.workers.facts, self.workers.epoch
            self.link.send(client.peer, Attached(PROTOCOL_VERSION, fingerprint(), epoch, facts))
            if not self.workers.attached:
                self.link.send(client.peer, Suspended("the workers are being restarted"))

    def on_peer_gone(self, incarnation: int, *, crashed: bool, cause: str) -> None:
        """The supervisor reports a death. `crashed`: by itself."""
        if self.workers.lost(incarnation):
            if self.scheduler is not None:
                self.recovery.on_lost(crashed, cause)
                for client in self.desk.clients.values():
                    self.link.send(client.peer, Suspended("the workers are being restarted"))
            return
        for client in list(self.desk.clients.values()):
            if client.incarnation == incarnation:
                self.observer.note("client_lost", len(client.requests), subject=client.name, cause=cause)
                self.desk.forget(client)

    # ── results ─────────────────────────────────────────────────────────────────────────────────

    def _take_result(self, result: StepResult) -> None:
        assert self.scheduler is not None
        planned = self.scheduler.settle(result.step)
        if planned is None:
            self.recovery.on_unexpected(result)
            return
        now = self.clock()
        num_answering = planned.num_decodes + len(planned.masked)
        self.meter.end_step(num_answering, planned.num_tokens - num_answering, now)
        delivery = deliver(planned, result)
        self.meter.generation_tokens += delivery.num_tokens
        self.desk.prefilled(planned.chunks, now)
        self._finish(delivery.finished)
        self.grammars.advance(delivery.constrained)
        for row, code in result.failed_rows:
            request = planned.request_at(row)
            if request.state is not State.ENDED:
                self.desk.fail(request, row_error(code), trusted=code == NoTokenAllowed.code)
        self.journal.write(result)

    def _finish(self, requests: list[Request]) -> None:
        if requests:
            self.meter.record_ends(len(requests), self.clock())
            for request in requests:
                self.desk.finished(request)

    def _take_masks(self) -> None:
        """What grammars have said → forced tokens of the requests, and masks for what follows."""
        for job in self.grammars.take():
            request = job.request
            if request.state is State.ENDED:
                continue
            if job.error is not None:
                self.desk.fail(request, job.error)
                continue
            num_forced = 0
            if job.forced:
                num_forced = deliver_forced(request, job.forced)
                self.meter.generation_tokens += num_forced
            job.grammar.mask, job.grammar.mask_at = job.mask, request.num_tokens
            if request.state is State.WAITING:
                assert self.scheduler is not None
                self.scheduler.go_on(request, num_forced)
            if request.finish:
                self._finish([request])

    # ── operators ───────────────────────────────────────────────────────────────────────────────

    def _control(self, peer: bytes, control: Control) -> None:
        match control.action:
            case "reset_prefix_cache":
                if self.scheduler is not None:
                    self.scheduler.kv.prefix_cache.clear()
                self.link.send(peer, ControlResult(control.nonce, True))
            case "start_profile" | "stop_profile":
                nonce = next(self.nonces)
                if self.workers.profile(nonce, control.action == "start_profile"):
                    self.asked[nonce] = peer, control.nonce
                else:
                    self.link.send(peer, ControlResult(control.nonce, False, "no worker is attached"))
            case _:
                assert_never(control.action)

    @property
    def busy(self) -> bool:
        """Requests run or wait."""
        scheduler = self.scheduler
        return scheduler is not None and (scheduler.num_running > 0 or scheduler.num_waiting > 0)

    def stats(self) -> EngineStats:
        """Gauges and counters, for Pong."""
        return self.observer.stats()
