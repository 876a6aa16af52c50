"""The message loop of one rank: plan in, result out. Knows nothing of models or tensors.

    engine core ──ROUTER/DEALER── leader (rank 0) ──PUSH/PULL── rank 1 … rank N-1

The leader forwards each message's own bytes to the other ranks before it starts on it, so that an
engine core that dies never leaves half of the group inside a collective. All ranks execute every plan;
only the leader answers.
"""

from array import array
from typing import Any, Protocol, assert_never

import zmq

from protocol import columns
from protocol.config import WorkerConfig
from protocol.control import ChildChannel, Drain, EngineAt, PeerGone, Quit, Ready, Retire, Start
from protocol.messages import PROTOCOL_VERSION, EngineFacts
from protocol.sockets import HIGH_WATER_MARK, Dealer, fingerprint
from protocol.steps import (
    EngineToWorker,
    LoadAdapter,
    Profile,
    Reset,
    StepFailed,
    StepPlan,
    StepResult,
    WorkerReady,
    WorkerReply,
    WorkerToEngine,
)


class Runner(Protocol):
    """What executes plans: the torch model, or the stub.

    Plans come strictly in order. A plan that raises leaves the resident batch undefined; the next call
    is then `reset`.
    """

    facts: EngineFacts
    model_fingerprint: str

    def reset(self) -> None:
        """Forget every sequence and all KV; keep the weights."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Edit the resident batch, compute, sample."""

    def profile(self, start: bool) -> str:
        """Start or stop a trace; on stop, the path of its file."""


class Worker:
    """One rank: takes plans from the engine core (leader) or from the leader (others)."""

    def __init__(self, config: WorkerConfig, channel: ChildChannel, runner: Runner) -> None:
        self.config = config
        self.channel = channel
        self.runner = runner
        self.epoch = -1
        self.stale_messages = 0
        self.quitting = False
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.poller = zmq.Poller()
        self.poller.register(channel.fileno(), zmq.POLLIN)
        self.plans: Dealer[EngineToWorker, WorkerToEngine] | None = None
        self.followers = [self._forwarding_socket(rank) for rank in self._follower_ranks()]
        if config.rank > 0:
            self.plans = Dealer(self.context, EngineToWorker)
            self.plans.connect(self._forwarding_endpoint(config.rank))
            self.poller.register(self.plans.socket, zmq.POLLIN)

    def run(self) -> None:
        """Until told to quit, or until the supervisor is gone."""
        facts = self.runner.facts
        self.channel.send(
            Ready(
                {
                    "model": facts.model,
                    "device": facts.device,
                    "dtype": facts.dtype,
                    "num_blocks": str(facts.num_blocks),
                    "block_size": str(facts.block_size),
                    "max_model_len": str(facts.max_model_len),
                    "weights_bytes": str(facts.weights_bytes),
                    "kv_bytes": str(facts.kv_bytes),
                }
            )
        )
        while not self.quitting:
            ready = dict(self.poller.poll())
            if self.channel.fileno() in ready:
                self._read_control()
            if self.plans is not None and self.plans.socket in ready:
                for message, body in self.plans.drain_frames():
                    for follower in self.followers:
                        follower.send(body)
                    self._handle(message)
        self.context.destroy(linger=0)
        self.channel.close()

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    def _read_control(self) -> None:
        try:
            while (message := self.channel.receive()) is not None:
                match message:
                    case EngineAt():
                        self._connect(message.workers_endpoint)
                    case Quit() | Drain():
                        self.quitting = True
                    case Start() | PeerGone() | Retire():
                        pass
                    case _:
                        assert_never(message)
        except EOFError:
            self.quitting = True

    def _handle(self, message: EngineToWorker) -> None:
        match message:
            case StepPlan():
                self._execute(message)
            case Reset():
                self.runner.reset()
                self.epoch = message.epoch
            case Profile():
                where = self.runner.profile(message.start)
                self._answer(WorkerReply(message.nonce, True, where))
            case LoadAdapter():
                refusal = f"adapter {message.name!r}: this worker serves base models only"
                self._answer(WorkerReply(message.nonce, False, refusal))
            case _:
                assert_never(message)

    def _execute(self, plan: StepPlan) -> None:
        if plan.epoch != self.epoch:
            self.stale_messages += 1
            return
        try:
            result = self.runner.execute(plan)
        except Exception as error:
            if self.config.parallel.tensor_parallel_size > 1:
                raise  # the other ranks wait in a collective: only a restart of the group frees them
            self.epoch = -1  # plans already on their way build on this one
            message = f"{type(error).__name__}: {error}"[:4096]
            failed = StepFailed(plan.epoch, plan.step, plan.scheduled_slots, "internal_error", message)
            self._answer(failed)
            return
        self._answer(result)

    def _answer(self, message: WorkerToEngine) -> None:
        if self.config.rank == 0 and self.plans is not None:
            self.plans.send(message)

    # ── sockets ─────────────────────────────────────────────────────────────────────────────────

    def _connect(self, endpoint: str) -> None:
        """Leave the engine core, if any, for a new one, and announce what is loaded."""
        if self.config.rank > 0:
            return
        if self.plans is not None:
            self.poller.unregister(self.plans.socket)
            self.plans.close()
        self.epoch = -1
        self.plans = Dealer(self.context, EngineToWorker)
        self.plans.connect(endpoint)
        self.poller.register(self.plans.socket, zmq.POLLIN)
        ready = WorkerReady(
            protocol_version=PROTOCOL_VERSION,
            fingerprint=fingerprint(),
            rank=self.config.rank,
            incarnation=self.config.incarnation,
            model_fingerprint=self.runner.model_fingerprint,
            facts=self.runner.facts,
        )
        self.plans.send(ready)

    def _follower_ranks(self) -> range:
        return range(1, self.config.parallel.tensor_parallel_size if self.config.rank == 0 else 1)

    def _forwarding_endpoint(self, rank: int) -> str:
        return f"ipc://{self.config.group_dir}/rank{rank}"

    def _forwarding_socket(self, rank: int) -> "zmq.Socket[Any]":
        socket: zmq.Socket[Any] = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.bind(self._forwarding_endpoint(rank))
        return socket


def no_tokens(count: int) -> "array[int]":
    """A column of `count` NO_TOKENs, for a result to be filled in."""
    return array(columns.INT32, [-1]) * count
