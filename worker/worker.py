"""The message loop of one rank: plan in, result out. Knows nothing of models or tensors.

    engine core ──ROUTER/DEALER── leader (rank 0) ──PUSH/PULL── rank 1 … rank N-1

The leader forwards each message's own bytes to the other ranks before it starts on it, so that an
engine core that dies never leaves half of the group inside a collective. All ranks execute every plan;
only the leader answers.

On a device the next step is launched before the last one's result is there, and results are answered as they
come. The progress board is told what the loop is at, with a budget; a step's own follows its size. A step
that fails is answered, unless other ranks wait in it or the device is lost: then the process ends, see
failures.py.
"""

import sys
import time
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import zmq

from protocol import columns
from protocol.config import WorkerConfig
from protocol.control import ChildChannel, Drain, EngineAt, PeerGone, Quit, Ready, Retire, Start
from protocol.errors import InternalError, OutOfMemory
from protocol.messages import PROTOCOL_VERSION, EngineFacts
from protocol.progress import Progress
from protocol.sockets import Dealer, fingerprint
from protocol.steps import (
    EngineToWorker,
    Profile,
    Reset,
    StepFailed,
    StepMasks,
    StepPlan,
    StepResult,
    WorkerReady,
    WorkerReply,
    WorkerToEngine,
)

from .failures import ProtocolBroken, RowsFailed, is_device_error, is_out_of_memory
from .launched import DEPTH, Launched
from .step_budget import StepBudget, StepSizes

LONG_BUDGET_S = 120.0
"""Of everything that is not a step: each part of loading, a reset, writing a trace."""
MOST_PLANS_AHEAD = 64
"""Queued for a rank that lags. The engine core has two plans under way, so this many mean that it hangs."""
MOST_OUT_OF_MEMORY = 3
"""Steps in a row; then the process ends, as only a new one has its memory in one piece."""


MaskSource = Callable[[StepPlan], bytes]
"""What the plan's masked rows may sample, as in StepPlan.masks. Asked for once, when all is computed that
needs no mask; may wait. Raises StepAbandoned."""


def carried(plan: StepPlan) -> bytes:
    """A MaskSource: of plans that are complete."""
    return plan.masks


class StepAbandoned(Exception):
    """The engine core has gone, or has begun a new epoch, before it had said all about the step."""


class Runner(Protocol):
    """What executes plans: the torch model, or the stub.

    Plans come strictly in order. A plan that raises leaves the resident batch undefined; the next call
    is then `reset`.
    """

    facts: EngineFacts
    model_fingerprint: str
    measured: tuple[tuple[int, float, float], ...]
    """Steps executed while loading, as StepBudget.record takes them: the first to come is judged by these."""

    def reset(self) -> None:
        """Forget every sequence and all KV, and give back what only a step needed; keep the weights."""

    def launch(self, plan: StepPlan, masks: MaskSource = carried) -> Launched:
        """Edit the resident batch, and start to compute and sample. At most DEPTH may be under way."""

    def execute(self, plan: StepPlan, masks: MaskSource = carried) -> StepResult:
        """The same, and wait for the result."""

    def profile(self, start: bool) -> str:
        """Start or stop a trace; on stop, the path of its file."""

    def spoil(self, blocks: Sequence[int]) -> None:
        """Fill these KV blocks with what a failed computation leaves: for faults on purpose, faults.py."""


class Worker:
    """One rank: takes plans from the engine core (leader) or from the leader (others)."""

    def __init__(
        self,
        config: WorkerConfig,
        channel: ChildChannel,
        runner: Runner,
        progress: Progress | None = None,
        budget: StepBudget | None = None,
    ) -> None:
        self.config = config
        self.channel = channel
        self.runner = runner
        self.progress = progress or Progress()
        self.budget = budget or StepBudget()
        self.sizes = StepSizes()
        self.epoch = -1
        self.step: int | None = None
        """Of the last plan of this epoch."""
        self.out_of_memory = 0
        """Steps in a row."""
        self.stale_messages = 0
        self.quitting = False
        self.launched: deque[_Step] = deque()
        """Under way, oldest first."""
        self.last_result = 0.0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.poller = zmq.Poller()
        self.poller.register(channel.fileno(), zmq.POLLIN)
        self.plans: Dealer[EngineToWorker, WorkerToEngine] | None = None
        self.inbox: deque[tuple[EngineToWorker, bytes]] = deque()
        """What has come over that link and is not done yet."""
        self.waited_s = 0.0
        """For the masks of the current step."""
        self.followers = [self._forwarding_socket(rank) for rank in self._follower_ranks()]
        if config.rank > 0:
            self.plans = Dealer(self.context, EngineToWorker)
            self.plans.socket.setsockopt(zmq.RCVHWM, MOST_PLANS_AHEAD)
            self.plans.connect(self._forwarding_endpoint(config.rank))
            self.poller.register(self.plans.socket, zmq.POLLIN)

    def run(self) -> None:
        """Until told to quit, or until the supervisor is gone. Raises what must end the process."""
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
                    "kv_dtype": facts.kv_dtype or facts.dtype,
                    "kv_groups": str(len(facts.kv_groups)),
                    "least_kv_tokens": str(facts.kv_tokens[0]),
                    "most_kv_tokens": str(facts.kv_tokens[1]),
                }
            )
        )
        while not self.quitting:
            self._listen()
            while self.inbox:
                self._handle(*self.inbox.popleft())
            self._collect()
        self.context.destroy(linger=0)
        self.channel.close()

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        """Wait until something comes; while steps are under way, only look, as a device tells that one is
        done only when it is asked."""
        if not self.launched:
            self.progress.idle()
        ready = dict(self.poller.poll(0 if self.launched else None))
        if self.channel.fileno() in ready:
            self._read_control()
        if self.plans is not None and self.plans.socket in ready:
            self.inbox += self.plans.drain_frames()
            if self.plans.dropped_frames:
                raise ProtocolBroken("a message of the engine core cannot be read")

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

    def _handle(self, message: EngineToWorker, body: bytes) -> None:
        match message:
            case StepPlan():
                self._execute(message, body)
            case StepMasks():
                self.stale_messages += 1  # their step was abandoned
            case Reset():
                self._begin(LONG_BUDGET_S, body)
                self.launched.clear()
                self.runner.reset()
                self.epoch, self.step = message.epoch, None
            case Profile():
                self._begin(LONG_BUDGET_S, body)
                where = self.runner.profile(message.start)
                self._answer(WorkerReply(message.nonce, True, where))
            case _:
                assert_never(message)

    def _begin(self, budget_s: float, body: bytes) -> None:
        """Say so on the board, and let the other ranks begin too. Waits for one that is far behind."""
        self.progress.busy(budget_s)
        for follower in self.followers:
            follower.send(body)

    def _execute(self, plan: StepPlan, body: bytes) -> None:
        if plan.epoch != self.epoch:
            self.stale_messages += 1
            return
        if self.step is not None and plan.step != self.step + 1:
            raise ProtocolBroken(f"step {plan.step} follows step {self.step}")
        self.step = plan.step
        if len(self.launched) == DEPTH:
            self._take(self.launched[0])
            if plan.epoch != self.epoch:  # it failed, and this one builds on it
                return
        self.waited_s = 0.0
        num_tokens, context = self.sizes.of(plan)
        budget_s = self.budget.budget_s(num_tokens, context)
        self._begin(sum(step.budget_s for step in self.launched) + budget_s, body)
        begun = time.perf_counter()
        try:
            launched = self.runner.launch(plan, self._masks_of)
        except StepAbandoned:
            self.epoch = -1
            self.launched.clear()
            self.runner.reset()
            return
        except ProtocolBroken:
            raise
        except Exception as error:
            self._on_failure(plan, error)
            return
        step = _Step(plan, launched, num_tokens, context, budget_s, begun + self.waited_s)
        self.launched.append(step)
        self._collect()

    def _collect(self) -> None:
        """Answer what is done."""
        while self.launched and self.launched[0].launched.ready():
            self._take(self.launched[0])

    def _take(self, step: "_Step") -> None:
        """Answer the oldest step, and wait for it if need be."""
        try:
            result = step.launched.result()
        except Exception as error:
            self._on_failure(step.plan, error)
            return
        self.launched.popleft()
        now = time.perf_counter()
        seconds = now - max(step.begun, self.last_result)  # it began when its forerunner was done
        self.last_result = now
        self.budget.record(step.num_tokens, step.context, seconds)
        if self.launched:
            self.progress.busy(sum(step.budget_s for step in self.launched))
        self.out_of_memory = 0
        self._answer(result)

    def _masks_of(self, plan: StepPlan) -> bytes:
        """A MaskSource. Waiting for the engine core is idleness, as between steps."""
        if plan.masks:
            return plan.masks
        begun = time.perf_counter()
        while not self.inbox:
            if self.launched:
                self._take(self.launched[0])  # whose tokens the masks follow from
            else:
                self._listen()
            if self.quitting or self.epoch != plan.epoch:
                raise StepAbandoned
        self.waited_s = time.perf_counter() - begun
        match self.inbox[0][0]:
            case StepMasks(plan.epoch, plan.step) as message:
                _, body = self.inbox.popleft()
                self._begin(self.budget.current_s, body)
                return message.masks
            case Reset():
                raise StepAbandoned
            case other:
                raise ProtocolBroken(f"a {type(other).__name__} comes before the masks of step {plan.step}")

    def _on_failure(self, plan: StepPlan, error: Exception) -> None:
        """Answer and stay alive, or raise."""
        if self.config.parallel.tensor_parallel_size > 1 or is_device_error(error):
            raise error  # other ranks wait in a collective: only a restart of the group frees them
        code, slots = InternalError.code, plan.scheduled_slots
        if is_out_of_memory(error):
            self.out_of_memory += 1
            if self.out_of_memory == MOST_OUT_OF_MEMORY:
                raise error
            code = OutOfMemory.code
        else:
            traceback.print_exception(error)
        if isinstance(error, RowsFailed):
            slots = columns.pack_ids(error.slots)
        message = f"{type(error).__name__}: {error}"[:4096]
        print(f"worker: step {plan.step} failed: {message}", file=sys.stderr, flush=True)
        self.epoch = -1  # plans already on their way build on this one
        error.__traceback__ = None  # its frames hold the step's tensors
        self.launched.clear()
        self.runner.reset()
        self._answer(StepFailed(plan.epoch, plan.step, slots, code, message))

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
        self.epoch, self.step = -1, None
        self.inbox.clear()
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
        socket.setsockopt(zmq.SNDHWM, MOST_PLANS_AHEAD)
        socket.bind(self._forwarding_endpoint(rank))
        return socket


@dataclass(frozen=True, slots=True)
class _Step:
    """Under way."""

    plan: StepPlan
    launched: Launched
    num_tokens: int
    context: float
    budget_s: float
    begun: float
    """Without what it waited for masks."""


def no_tokens(count: int) -> "array[int]":
    """A column of `count` NO_TOKENs, for a result to be filled in."""
    return array(columns.INT32, [-1]) * count
