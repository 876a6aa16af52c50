"""Engine: receive → schedule → dispatch → collect → publish. Ties the state machines to sockets and clock.

One thread, no timers but request deadlines: between messages it sleeps in poll and costs nothing.
Everything it holds can be rebuilt: requests by their clients, KV by computing it again.
"""

import heapq
import itertools
import time
from collections import deque
from typing import assert_never

import zmq

from protocol import columns
from protocol.config import EngineCoreConfig
from protocol.control import ChildChannel, Drain, EngineAt, PeerGone, Quit, Retire, Start
from protocol.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NumericalError,
    Overloaded,
    TernError,
    Unavailable,
)
from protocol.messages import (
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    AttachRefused,
    ClientMessage,
    Control,
    ControlResult,
    EngineFacts,
    EngineMessage,
    EngineStats,
    Finish,
    Ping,
    Pong,
    Refused,
    Submit,
)
from protocol.sockets import Router, fingerprint
from protocol.steps import StepFailed, StepResult, WorkerReady, WorkerReply

from .admission import check
from .clients import Client
from .finishing import already_finished, deliver
from .meter import Meter
from .request import Request, State
from .scheduler import Scheduler
from .worker_group import WorkerGroup

_MOST_FAILED_STEPS = 2


class Engine:
    """One engine core."""

    def __init__(self, config: EngineCoreConfig, channel: ChildChannel) -> None:
        self.config = config
        self.channel = channel
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router: Router[ClientMessage, EngineMessage] = Router(self.context, ClientMessage)
        self.router.bind(config.clients_endpoint)
        self.workers = WorkerGroup(self.context, config.workers_endpoint, config.incarnation)
        self.clients: dict[bytes, Client] = {}
        self.scheduler: Scheduler | None = None
        options = config.scheduler
        self.depth = 2 if options.async_scheduling else 1
        self.meter = Meter(options.inter_token_target_ms / 1000, options.max_num_batched_tokens)
        self.begun: deque[float] = deque()
        """When each step in flight was sent."""
        self.last_result = 0.0
        self.deadlines: list[tuple[float, int, Request]] = []
        self.arrivals = itertools.count()
        self.asked: dict[int, tuple[bytes, int]] = {}
        """Of controls that the workers are working on: (peer, the peer's nonce)."""
        self.quitting = False
        self.poller = zmq.Poller()
        self.sources = {
            channel.fileno(): self.read_control,
            self.workers.router.socket: self.collect,
            self.router.socket: self.receive,
        }
        for source in self.sources:
            self.poller.register(source, zmq.POLLIN)

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """receive and collect → schedule and dispatch → publish, until told to quit or left alone."""
        while not self.quitting:
            for source, _ in self.poller.poll(self._poll_ms()):
                self.sources[source]()
            self.expire()
            self.dispatch()
            self.publish()
        self.context.destroy(linger=0)
        self.channel.close()

    def collect(self) -> None:
        """Results of the workers → tokens of the requests."""
        for event in self.workers.receive():
            match event:
                case StepResult():
                    self._take_result(event)
                case StepFailed():
                    self._on_step_failed(event)
                case WorkerReady():
                    self._on_worker_ready(event.facts)
                case WorkerReply():
                    if asker := self.asked.pop(event.nonce, None):
                        self.router.send(asker[0], ControlResult(asker[1], event.ok, event.message))
                case _:
                    assert_never(event)

    def receive(self) -> None:
        """Messages of the clients → requests."""
        for peer, message in self.router.drain():
            match message:
                case Submit():
                    self._submit(peer, message)
                case Abort():
                    self._abort(peer, message)
                case Ping():
                    self.router.send(peer, Pong(message.nonce, self.workers.epoch, self.stats()))
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
        while len(scheduler.in_flight) < self.depth:
            planned = scheduler.plan(self.meter.prompt_budget())
            if planned is None:
                return
            self.workers.dispatch(planned.plan)
            self.begun.append(time.monotonic())

    def publish(self) -> None:
        """One message per client for whatever has happened."""
        step = self.meter.steps
        for client in list(self.clients.values()):
            outputs = client.take_outputs(self.workers.epoch, step)
            if outputs is not None and not self.router.send(client.peer, outputs):
                self._forget(client)

    def expire(self) -> None:
        """End the requests whose deadline has passed."""
        now = time.monotonic() if self.deadlines else 0.0
        while self.deadlines and self.deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self.deadlines)
            if request.state is not State.ENDED:
                self._fail(request, DeadlineExceeded("the request's own deadline passed before it was done"))

    def _poll_ms(self) -> int | None:
        if not self.deadlines:
            return None
        return max(0, int((self.deadlines[0][0] - time.monotonic()) * 1000) + 1)

    # ── clients ─────────────────────────────────────────────────────────────────────────────────

    def _attach(self, peer: bytes, attach: Attach) -> None:
        if (attach.protocol_version, attach.fingerprint) != (PROTOCOL_VERSION, fingerprint()):
            message = (
                f"client {attach.name!r} speaks protocol {attach.protocol_version}/{attach.fingerprint}, "
                f"this engine core {PROTOCOL_VERSION}/{fingerprint()}: install the same version on both sides"
            )
            self.router.send(peer, AttachRefused(PROTOCOL_VERSION, fingerprint(), message))
            return
        client = self.clients[peer] = Client(peer, attach.name, attach.incarnation)
        self._greet(client)

    def _greet(self, client: Client) -> None:
        """Tell a client the facts; before a worker is ready there are none, and it waits."""
        if self.workers.facts is not None:
            facts, epoch = self.workers.facts, self.workers.epoch
            self.router.send(client.peer, Attached(PROTOCOL_VERSION, fingerprint(), epoch, facts))

    def _submit(self, peer: bytes, submit: Submit) -> None:
        client = self.clients.get(peer)
        try:
            if client is None or self.scheduler is None or self.workers.facts is None:
                raise Unavailable("attach first, and wait for Attached")
            if (known := client.requests.pop(submit.request_id, None)) is not None:
                self.scheduler.end(known)
            request = Request(client, submit, self.workers.facts, next(self.arrivals))
            check(submit, request, self.workers.facts)
            num_waiting = len(self.scheduler.waiting)
            if not submit.resumed_token_ids and num_waiting >= self.config.scheduler.max_num_waiting:
                raise Overloaded(f"{num_waiting} requests wait already, the most allowed: try again later")
            if submit.timeout_s is not None:
                request.deadline = time.monotonic() + submit.timeout_s
                heapq.heappush(self.deadlines, (request.deadline, request.arrival, request))
            if finish := already_finished(request):
                request.state = State.ENDED
                client.add_end(request, finish)
                return
            client.requests[request.request_id] = request
            self.scheduler.add(request)
        except (TernError, ValueError) as error:
            known_error = error if isinstance(error, TernError) else InvalidRequest(str(error))
            self._refuse(peer, submit.request_id, known_error)

    def _abort(self, peer: bytes, abort: Abort) -> None:
        client = self.clients.get(peer)
        for request_id in abort.request_ids:
            if client is not None and (request := client.requests.pop(request_id, None)) is not None:
                self._end(request)
                client.add_end(request, Finish.ABORT)

    def _forget(self, client: Client) -> None:
        """The client is gone: so are its requests."""
        del self.clients[client.peer]
        for request in client.requests.values():
            self._end(request)
        client.requests.clear()

    def _end(self, request: Request) -> None:
        if self.scheduler is not None:
            self.scheduler.end(request)

    def _fail(self, request: Request, error: TernError, *, trusted: bool = True) -> None:
        request.client.requests.pop(request.request_id, None)
        if self.scheduler is not None:
            self.scheduler.end(request, trusted=trusted)
        self._refuse(request.client.peer, request.request_id, error)

    def _refuse(self, peer: bytes, request_id: int, error: TernError) -> None:
        refused = Refused(request_id, error.code, error.message, error.retryable, error.param or "")
        self.router.send(peer, refused)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────

    def _on_worker_ready(self, facts: EngineFacts) -> None:
        """A group is there, empty: every request starts over with the ids it has."""
        if self.scheduler is None:
            self.scheduler = Scheduler(self.config.scheduler, self.config.cache, facts)
        self._restart(facts)
        for client in self.clients.values():
            self._greet(client)

    def _restart(self, facts: EngineFacts) -> None:
        assert self.scheduler is not None
        self.scheduler.reset(self.workers.epoch, facts)
        self.begun.clear()
        for request in list(self.scheduler.waiting):
            if request.max_total_tokens > facts.max_model_len:
                message = f"the model now holds {facts.max_model_len} tokens, fewer than this request needs"
                self._fail(request, Unavailable(message))

    def _take_result(self, result: StepResult) -> None:
        assert self.scheduler is not None
        planned = self.scheduler.settle(result.step)
        if planned is None:
            self.workers.stale_messages += 1
            return
        now = time.monotonic()
        seconds = now - max(self.begun.popleft(), self.last_result)
        self.last_result = now
        self.meter.record(planned.num_decodes, planned.num_tokens - planned.num_decodes, seconds)
        finished, num_tokens = deliver(planned, result)
        self.meter.generation_tokens += num_tokens
        for request in finished:
            request.client.requests.pop(request.request_id, None)
            self.scheduler.end(request)
        for row, code in result.failed_rows:
            if planned.rows[row].state is not State.ENDED:
                self._fail(planned.rows[row], _row_error(code), trusted=False)

    def _on_step_failed(self, failed: StepFailed) -> None:
        """The workers' batch is lost, not the requests: start over, without those that keep failing."""
        scheduler = self.scheduler
        assert scheduler is not None
        blamed = set(columns.unpack_ids(failed.slots))
        for request in list(scheduler.running()):
            if request.slot in blamed:
                request.failed_steps += 1
                if request.failed_steps >= _MOST_FAILED_STEPS:
                    self._fail(request, InternalError("the model failed twice on this request"))
        self.workers.begin_epoch()
        self._restart(scheduler.facts)

    # ── operators and supervisor ────────────────────────────────────────────────────────────────

    def _control(self, peer: bytes, control: Control) -> None:
        match control.action:
            case "reset_prefix_cache":
                if self.scheduler is not None:
                    self.scheduler.prefix_cache.clear()
                self.router.send(peer, ControlResult(control.nonce, True))
            case "start_profile" | "stop_profile":
                nonce = next(self.arrivals)
                if self.workers.profile(nonce, control.action == "start_profile"):
                    self.asked[nonce] = peer, control.nonce
                else:
                    self.router.send(peer, ControlResult(control.nonce, False, "no worker is attached"))
            case _:
                assert_never(control.action)

    def read_control(self) -> None:
        """What the supervisor says."""
        try:
            while (message := self.channel.receive()) is not None:
                match message:
                    case PeerGone():
                        self._on_peer_gone(message.incarnation)
                    case Quit() | Drain():
                        self.quitting = True
                    case Start() | EngineAt() | Retire():
                        pass
                    case _:
                        assert_never(message)
        except EOFError:
            self.quitting = True

    def _on_peer_gone(self, incarnation: int) -> None:
        if self.workers.lost(incarnation):
            return  # the next group begins a new epoch
        for client in list(self.clients.values()):
            if client.incarnation == incarnation:
                self._forget(client)

    def stats(self) -> EngineStats:
        """Gauges and counters, for Pong."""
        scheduler, meter = self.scheduler, self.meter
        if scheduler is None:
            return EngineStats()
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=len(scheduler.waiting),
            num_free_blocks=scheduler.pool.num_free + len(scheduler.pool.fenced),
            num_blocks=scheduler.pool.num_blocks,
            steps=meter.steps,
            prompt_tokens=meter.prompt_tokens,
            generation_tokens=meter.generation_tokens,
            prefix_cache_queries=scheduler.prefix_queries,
            prefix_cache_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            epochs=self.workers.num_epochs,
            dropped_frames=self.router.dropped_frames + self.workers.router.dropped_frames,
            stale_messages=self.workers.stale_messages,
        )


def _row_error(code: str) -> TernError:
    if code == NumericalError.code:
        return NumericalError("the model's numbers for this request were not finite")
    return InternalError("the model failed on this request")
