"""How long a step may take: follows size and context, and forgets outliers."""

import pytest

from protocol import columns
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan
from worker.step_budget import FLOOR_S, MARGIN, UNMEASURED_S, StepBudget, StepSizes


def test_before_anything_is_measured() -> None:
    budget = StepBudget()
    assert budget.budget_s(1, 1) == budget.budget_s(100_000, 1000) == budget.current_s == UNMEASURED_S


def test_a_size_that_was_measured() -> None:
    budget = StepBudget()
    budget.record(128, 50, 0.01)
    budget.record(1, 50, 0.001)
    assert budget.budget_s(130, 50) == pytest.approx(FLOOR_S + MARGIN * 0.01)
    assert budget.budget_s(1, 50) == pytest.approx(FLOOR_S + MARGIN * 0.001)
    assert budget.current_s == budget.budget_s(1, 50)


def test_a_size_that_was_not() -> None:
    """A larger one runs at the rate of the largest known; a smaller one takes no longer than a larger one."""
    budget = StepBudget()
    budget.record(8, 1, 0.08)
    budget.record(128, 1, 0.2)
    assert budget.budget_s(1000, 1) == pytest.approx(FLOOR_S + MARGIN * 1000 * 0.2 / 128)
    assert budget.budget_s(1, 1) == pytest.approx(FLOOR_S + MARGIN * 0.08)


def test_a_longer_context_takes_longer() -> None:
    budget = StepBudget()
    budget.record(8, 100, 0.1)
    assert budget.budget_s(8, 500) == pytest.approx(FLOOR_S + MARGIN * 0.5)
    assert budget.budget_s(8, 10) == pytest.approx(FLOOR_S + MARGIN * 0.1), "and a shorter one not less"
    assert budget.budget_s(100, 500) == pytest.approx(FLOOR_S + MARGIN * 100 * 0.1 / 8 * 5)


def test_one_slow_step_is_forgotten() -> None:
    budget = StepBudget()
    budget.record(8, 1, 5.0)
    assert budget.budget_s(8, 1) > 20
    for _ in range(60):
        budget.record(8, 1, 0.01)
    assert budget.budget_s(8, 1) == pytest.approx(FLOOR_S + MARGIN * 0.01, abs=0.01)


def test_what_a_plan_asks_for() -> None:
    sizes = StepSizes()
    start = SequenceStart(3, columns.pack_ids(range(40)), 40, 16, b"", SamplingParams())
    plan = StepPlan(1, 1, columns.pack_ids([3]), columns.pack_ids([24]), started=(start,))
    assert sizes.of(plan) == (24, 40.0)
    other = SequenceStart(5, columns.pack_ids(range(9)), 9, 0, b"", SamplingParams())
    plan = StepPlan(1, 2, columns.pack_ids([3, 5]), columns.pack_ids([1, 9]), started=(other,))
    assert sizes.of(plan) == (10, (41 + 9 * 9) / 10)
