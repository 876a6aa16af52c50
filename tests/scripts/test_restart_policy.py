"""The policy alone: no process, no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.restart_policy import LONGEST_DELAY_S, GiveUp, Restart, RestartPolicy

KILLED = -9


def died(
    policy: RestartPolicy, now: float, *, was_ready: bool = True, exit_code: int = KILLED
) -> Restart | GiveUp:
    return policy.on_death("worker", exit_code, was_ready, now)


@pytest.mark.parametrize(("exit_code", "was_ready"), [(78, True), (78, False), (75, False)])
def test_a_configuration_error_is_final(exit_code: int, was_ready: bool) -> None:
    assert died(RestartPolicy(5, 60), 0, exit_code=exit_code, was_ready=was_ready) == GiveUp()


def test_memory_that_runs_out_after_loading_may_suffice_again() -> None:
    policy = RestartPolicy(5, 60)
    policy.on_ready("worker")
    assert died(policy, 0, exit_code=75) == Restart(0)


@pytest.mark.parametrize("exit_code", [70, 71])
@pytest.mark.parametrize("was_ready", [True, False])
def test_a_bad_device_or_link_is_worth_another_process(exit_code: int, was_ready: bool) -> None:
    policy = RestartPolicy(1, 60)
    assert died(policy, 0, exit_code=exit_code, was_ready=was_ready) == Restart(0)
    assert isinstance(died(policy, 1, exit_code=exit_code, was_ready=was_ready), GiveUp)


def test_a_defect_that_every_start_would_meet_is_final() -> None:
    assert died(RestartPolicy(5, 60), 0, exit_code=1, was_ready=False) == GiveUp()
    assert died(RestartPolicy(5, 60), 0, exit_code=-11, was_ready=False) == Restart(0)


def test_a_start_that_fails_after_one_that_did_not_is_tried_again() -> None:
    policy = RestartPolicy(5, 60)
    policy.on_ready("worker")
    assert died(policy, 0, exit_code=1, was_ready=False) == Restart(0)


def test_what_was_ready_starts_again_at_once() -> None:
    policy = RestartPolicy(5, 60)
    for second in range(5):
        policy.on_ready("worker")
        assert died(policy, second) == Restart(0)


def test_more_deaths_than_allowed_within_the_window() -> None:
    policy = RestartPolicy(2, 60)
    assert died(policy, 0) == Restart(0)
    assert died(policy, 59.9) == Restart(0)
    match died(policy, 59.99):
        case GiveUp(why):
            assert "3 deaths within 60 s" in why
        case other:
            raise AssertionError(other)


def test_deaths_leave_the_window() -> None:
    policy = RestartPolicy(1, 60)
    assert all(died(policy, minute * 60.0) == Restart(0) for minute in range(10))


def test_kinds_are_counted_apart() -> None:
    policy = RestartPolicy(1, 60)
    assert died(policy, 0) == Restart(0)
    assert policy.on_death("frontend", KILLED, True, 1) == Restart(0)
    assert isinstance(died(policy, 2), GiveUp)


def test_starts_that_fail_wait_longer_each_time() -> None:
    policy = RestartPolicy(100, 60)
    delays = [died(policy, second, was_ready=False) for second in range(9)]
    assert delays[:4] == [Restart(0), Restart(0.25), Restart(0.5), Restart(1)]
    assert delays[-1] == Restart(LONGEST_DELAY_S)


def test_ready_ends_a_series_of_failed_starts() -> None:
    policy = RestartPolicy(100, 60)
    for second in range(5):
        died(policy, second, was_ready=False)
    policy.on_ready("worker")
    assert died(policy, 6) == Restart(0)
    assert died(policy, 7, was_ready=False) == Restart(0)


def test_slow_starts_that_never_succeed_end_too() -> None:
    policy = RestartPolicy(3, 60)
    answers = [died(policy, 1000.0 * n, was_ready=False) for n in range(4)]
    assert [type(answer) for answer in answers] == [Restart, Restart, Restart, GiveUp]


def test_no_restarts_at_all() -> None:
    match died(RestartPolicy(0, 60), 0):
        case GiveUp(why):
            assert "--max-restarts 0" in why
        case other:
            raise AssertionError(other)


@given(
    limit=st.integers(0, 6),
    window=st.floats(1, 100),
    events=st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=40),
)
def test_never_more_restarts_within_a_window_than_allowed(
    limit: int, window: float, events: list[tuple[float, bool]]
) -> None:
    policy = RestartPolicy(limit, window)
    now, restarts = 0.0, []
    for pause, ready in events:
        now += pause
        if ready:
            policy.on_ready("worker")
        answer = died(policy, now, was_ready=ready)
        if isinstance(answer, GiveUp):
            return
        restarts.append(now)
        assert 0 <= answer.delay_s <= LONGEST_DELAY_S
        assert sum(1 for moment in restarts if moment > now - window) <= limit
