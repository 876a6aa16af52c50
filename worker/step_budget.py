"""How long a step may take before the process counts as hung. Knows no clock, no model and no board.

    budget = FLOOR_S + MARGIN × predicted seconds

A prediction comes from steps of like size (number of tokens, to a power of two) that were measured. A
token that attends to more costs more, so it grows with the context, linearly: attention is no worse.
"""

from dataclasses import dataclass

from protocol import columns
from protocol.steps import StepPlan

FLOOR_S = 0.75
MARGIN = 4.0
UNMEASURED_S = 30.0
"""Before any step was measured, which a model does while it is loaded."""
WEIGHT = 0.2
"""Of the newest measurement in a moving average."""


@dataclass(slots=True)
class _Average:
    """Of the steps of one size."""

    seconds: float
    num_tokens: float
    context: float

    def move(self, seconds: float, num_tokens: int, context: float) -> None:
        self.seconds += WEIGHT * (seconds - self.seconds)
        self.num_tokens += WEIGHT * (num_tokens - self.num_tokens)
        self.context += WEIGHT * (context - self.context)


class StepBudget:
    def __init__(self) -> None:
        self.current_s = UNMEASURED_S
        """What `budget_s` said last."""
        self._averages: dict[int, _Average] = {}

    def budget_s(self, num_tokens: int, context: float) -> float:
        """Of a step of so many tokens, each of which attends to `context` tokens on average."""
        self.current_s = UNMEASURED_S
        if self._averages:
            self.current_s = FLOOR_S + MARGIN * self._predicted_s(num_tokens, context)
        return self.current_s

    def record(self, num_tokens: int, context: float, seconds: float) -> None:
        """A step of this size took so long."""
        size = num_tokens.bit_length()
        if size in self._averages:
            self._averages[size].move(seconds, num_tokens, context)
        else:
            self._averages[size] = _Average(seconds, num_tokens, context)

    def _predicted_s(self, num_tokens: int, context: float) -> float:
        """Of a size never measured: as the next larger one, else at the rate of the largest known one, as a
        token costs less in a larger step."""
        size = num_tokens.bit_length()
        like = [known for known in self._averages if known >= size]
        if like:
            nearest = self._averages[min(like)]
            return nearest.seconds * max(context / max(nearest.context, 1.0), 1.0)
        largest = self._averages[max(self._averages)]
        longer = max(context / max(largest.context, 1.0), 1.0)
        return largest.seconds / largest.num_tokens * num_tokens * longer


class StepSizes:
    """Follows the plans, to tell how much each asks for."""

    def __init__(self) -> None:
        self._computed: dict[int, int] = {}
        """By slot: tokens"""

    def of(self, plan: StepPlan) -> tuple[int, float]:
        """(tokens, to how many each attends on average)"""
        computed = self._computed
        for start in plan.started:
            computed[start.slot] = start.num_computed_tokens
        num_tokens = num_seen = 0
        slots, counts = columns.unpack_ids(plan.scheduled_slots), columns.unpack_ids(plan.scheduled_counts)
        for slot, count in zip(slots, counts, strict=False):
            length = computed[slot] = computed.get(slot, 0) + count
            num_tokens += count
            num_seen += count * length
        return num_tokens, num_seen / max(num_tokens, 1)
