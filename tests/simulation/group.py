"""The ranks of one worker group: they wait for each other in each step, and live and die together.

    leader ── plan ──▶ rank 1        each computes, then waits in the meeting, as in a collective, until all
       └── meeting ◀──────┘          are there; a rank that hangs or is dead keeps the others waiting

Each of the others executes every plan too; that they do so in the same order is what is checked.
"""

from collections.abc import Callable
from random import Random

from protocol.steps import EngineToWorker, Reset, StepPlan
from worker.step_budget import StepBudget, StepSizes

from .network import TO_WORKER, Agenda, Link, Weather
from .process import TURN_S, Process


class Meeting:
    """Where ranks wait until all are at the same step."""

    def __init__(self, size: int) -> None:
        self.passed = 0
        """Steps that all ranks have computed."""
        self._size = size
        self._there: dict[Process, tuple[int, int]] = {}

    def enter(self, rank: Process, step: tuple[int, int]) -> int:
        """Returns what `passed` exceeds when all are there. `step` is (epoch, step)."""
        others = set(self._there.values())
        assert others <= {step}, f"one rank computes step {step}, others {others}"
        self._there[rank] = step
        ticket = self.passed
        if len(self._there) == self._size:
            self.passed += 1
            for one in self._there:
                one.wake(one.agenda.now)
            self._there.clear()
        return ticket


class Rank(Process):
    """One that is not the leader: it takes plans from the leader, and answers nobody."""

    kind = "worker"

    def __init__(
        self,
        agenda: Agenda,
        draw: Random,
        incarnation: int,
        on_exit: Callable[[Process, int], object],
        meeting: Meeting,
        step_s: float,
    ) -> None:
        super().__init__(agenda, incarnation, on_exit)
        self.plans = Link(agenda, draw, Weather(), TO_WORKER, self._arrive, lossless=True)
        self.num_steps = 0
        self._draw = draw
        self._meeting = meeting
        self._step_s = step_s
        self._inbox: list[EngineToWorker] = []
        self._budget, self._sizes = StepBudget(), StepSizes()
        self._epoch = -1
        self._step: int | None = None
        self._plan: StepPlan | None = None
        """Of the present step."""
        self._size = 0, 0.0
        self._began = self._computed_at = 0.0
        self._ticket: int | None = None
        """Of the meeting in which it waits."""

    @property
    def budget_s(self) -> float:
        return self._budget.current_s if self._plan is not None else 0.0

    def close(self) -> None:
        self.plans.open = False

    def _arrive(self, message: EngineToWorker) -> None:
        self._inbox.append(message)
        self.wake(self.agenda.now + TURN_S)

    def turn(self) -> None:
        if self._plan is not None and not self._done(self._plan):
            return
        while self._inbox and self._plan is None:
            message = self._inbox.pop(0)
            if isinstance(message, Reset):
                self._epoch, self._step = message.epoch, None
            elif isinstance(message, StepPlan):
                self._begin(message)

    def _begin(self, plan: StepPlan) -> None:
        assert plan.epoch == self._epoch, f"a plan of epoch {plan.epoch} follows a reset to {self._epoch}"
        assert self._step is None or plan.step == self._step + 1, f"{plan.step} follows {self._step}"
        self._step, self._plan = plan.step, plan
        self.num_steps += 1
        self._size = self._sizes.of(plan)
        self._budget.budget_s(*self._size)
        self._began = self.agenda.now
        self._computed_at = self.agenda.now + self._step_s * self._draw.uniform(0.8, 1.2)
        self._beats += 1
        self.wake(self._computed_at)

    def _done(self, plan: StepPlan) -> bool:
        if self.agenda.now < self._computed_at:
            self.wake(self._computed_at)
            return False
        if self._ticket is None:
            self._ticket = self._meeting.enter(self, (plan.epoch, plan.step))
        if self._meeting.passed <= self._ticket:
            return False
        self._budget.record(*self._size, self.agenda.now - self._began)
        self._plan = self._ticket = None
        return True
