"""The hash model behind the loop of worker.py, as a simulated process whose steps take time and fail."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import assert_never

from msgspec import structs

from protocol import columns
from protocol.errors import DEVICE_EXIT_CODE, InternalError, NumericalError, OutOfMemory
from protocol.messages import NO_TOKEN, PROTOCOL_VERSION
from protocol.sockets import fingerprint
from protocol.steps import (
    EngineToWorker,
    Profile,
    Reset,
    StepFailed,
    StepMasks,
    StepPlan,
    StepResult,
    WorkerReady,
    WorkerToEngine,
)
from worker.step_budget import FLOOR_S, StepBudget, StepSizes
from worker.stub import StubRunner
from worker.worker import MOST_OUT_OF_MEMORY

from .group import Meeting, Rank
from .network import Agenda, Connection
from .process import SIGSEGV, TURN_S, Process
from .users import Mark


class Worker(Process):
    """The hash model behind the loop of worker.py, with steps that take time. With `ranks` it leads them."""

    kind = "worker"

    def __init__(
        self,
        agenda: Agenda,
        draw: Random,
        incarnation: int,
        on_exit: Callable[[Process, int], object],
        runner: StubRunner,
        step_s: float,
        meeting: Meeting,
    ) -> None:
        super().__init__(agenda, incarnation, on_exit)
        self.runner = runner
        self.ranks: list[Rank] = []
        """The others of its group."""
        self._meeting = meeting
        self._ticket: int | None = None
        self.inbox: list[EngineToWorker] = []
        self.connection: Connection | None = None
        self.faults: list[str] = []
        """What happens to the next steps: "exception", "out_of_memory", "slow", "exit"."""
        self.num_steps = 0
        self._draw = draw
        self._step_s = step_s
        self._epoch = -1
        self._step: int | None = None
        self._maskless: StepPlan | None = None
        """A plan whose masks follow."""
        self._out_of_memory = 0
        self._marks: dict[int, Mark] = {}
        """By slot."""
        self._budget, self._sizes = StepBudget(), StepSizes()
        self._invitation: Connection | None = None
        self._done: tuple[float, Callable[[], object]] | None = None
        """When the present step is, and what follows."""

    @property
    def budget_s(self) -> float:
        return self._budget.current_s if self._done is not None else 0.0

    def connect(self, connection: Connection) -> None:
        """Between two steps."""
        self._invitation = connection
        self.wake(self.agenda.now + TURN_S)

    def _connect(self, connection: Connection) -> None:
        """Leave the engine core, if any, for a new one, and announce what is loaded."""
        self.close()
        self.connection = connection
        self._epoch, self._step = -1, None
        self.inbox.clear()
        runner = self.runner
        ready = WorkerReady(
            PROTOCOL_VERSION, fingerprint(), 0, self.incarnation, runner.model_fingerprint, runner.facts
        )
        self._answer(ready)

    def arrive(self, message: EngineToWorker) -> None:
        self.inbox.append(message)
        self.wake(self.agenda.now + TURN_S)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def turn(self) -> None:
        if self._done is not None:
            when, then = self._done
            if self.agenda.now < when:
                self.wake(when)
                return
            if self.ranks:
                assert self._step is not None
                if self._ticket is None:
                    self._ticket = self._meeting.enter(self, (self._epoch, self._step))
                if self._meeting.passed <= self._ticket:
                    return
            self._done = self._ticket = None
            then()
        if self._invitation is not None and self.alive:
            invitation, self._invitation = self._invitation, None
            self._connect(invitation)
        while self.inbox and self._done is None and self.alive:
            message = self.inbox.pop(0)
            match message:
                case Reset():
                    self._forward(message)
                    self._forget()
                    self._epoch, self._step = message.epoch, None
                case StepPlan() if message.masked_rows and not message.masks:
                    self._maskless = message
                case StepPlan():
                    if message.epoch == self._epoch:
                        self._begin(message)
                case StepMasks():
                    if message.epoch == self._epoch:
                        assert self._maskless is not None
                        assert message.step == self._maskless.step
                        self._begin(structs.replace(self._maskless, masks=message.masks))
                case Profile():
                    raise AssertionError("nobody asked for that")
                case _:
                    assert_never(message)

    def _begin(self, plan: StepPlan) -> None:
        assert self._step is None or plan.step == self._step + 1, f"{plan.step} follows {self._step}"
        self._step = plan.step
        self.num_steps += 1
        num_tokens, context = self._sizes.of(plan)
        self._forward(plan)
        budget_s = self._budget.budget_s(num_tokens, context)
        seconds = self._step_s * self._draw.uniform(0.8, 1.2) + 2e-5 * num_tokens
        for slot in columns.unpack_ids(plan.released):
            self._marks.pop(slot, None)
        for start in plan.started:
            if start.sampling.seed in set(Mark):
                self._marks[start.slot] = Mark(start.sampling.seed)
        marks = set()
        if self._marks:
            marks = {self._marks.get(slot) for slot in columns.unpack_ids(plan.scheduled_slots)}
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "slow":
            # Other ranks have measured other steps: theirs may be the least budget that there is.
            seconds = 1.5 * (FLOOR_S if self.ranks else min(budget_s, 2.0))
        result = self.runner.execute(plan)  # what is wrong with a plan raises, and ends the simulation
        then: Callable[[], object]
        if Mark.CRASH in marks:
            then = partial(self._draw.choice([self, *self.ranks]).exit, SIGSEGV)
        elif fault == "exit":
            then = partial(self.exit, DEVICE_EXIT_CODE)
        elif Mark.RAISE in marks or fault == "exception":
            then = partial(self._fail, plan, InternalError.code)
        elif fault == "out_of_memory":
            then = partial(self._fail, plan, OutOfMemory.code)
        else:
            if Mark.NAN in marks:
                result = self._spoiled(plan, result)
            then = partial(self._succeed, result, num_tokens, context, self.agenda.now)
        self._done = self.agenda.now + seconds, then
        self._beats += 1
        self.wake(self._done[0])

    def _forward(self, message: EngineToWorker) -> None:
        """To the other ranks, before it begins itself."""
        for rank in self.ranks:
            self.count_send()
            rank.plans.send(message)

    def _succeed(self, result: StepResult, num_tokens: int, context: float, began: float) -> None:
        self._budget.record(num_tokens, context, self.agenda.now - began)
        self._out_of_memory = 0
        self._answer(result)

    def _fail(self, plan: StepPlan, code: str) -> None:
        if self.ranks:  # they wait in a collective
            self.exit(OutOfMemory.exit_code if code == OutOfMemory.code else 1)
            return
        if code == OutOfMemory.code:
            self._out_of_memory += 1
            if self._out_of_memory == MOST_OUT_OF_MEMORY:
                self.exit(OutOfMemory.exit_code)
                return
        self._epoch = -1
        self._forget()
        self._answer(StepFailed(plan.epoch, plan.step, plan.scheduled_slots, code, "on purpose"))

    def _forget(self) -> None:
        self.runner.reset()
        self._marks.clear()
        self._maskless = None

    def _spoiled(self, plan: StepPlan, result: StepResult) -> StepResult:
        """The rows of marked requests that sampled, or made a vector, have failed."""
        tokens, vectors = columns.unpack_ids(result.token_ids), dict(result.embeddings)
        failed = []
        for row, slot in enumerate(columns.unpack_ids(plan.scheduled_slots)):
            if self._marks.get(slot) is Mark.NAN and (tokens[row] != NO_TOKEN or row in vectors):
                tokens[row] = NO_TOKEN
                vectors.pop(row, None)
                failed.append((row, NumericalError.code))
        return StepResult(
            result.epoch,
            result.step,
            columns.pack_ids(tokens),
            result.logprobs,
            result.prompt_logprobs,
            tuple(failed),
            tuple(vectors.items()),
        )

    def _answer(self, message: WorkerToEngine) -> None:
        self.count_send()
        if self.connection is not None and self.connection.open:
            self.connection.up.send(message)
