"""Steps that fail, workers that die or cannot be reached: who is to blame, and that nobody else suffers."""

import pytest
from msgspec import structs

from engine_core import planned_step
from engine_core.engine import CUT_PATIENCE_S, LinkCut
from protocol import columns
from protocol.errors import DeadlineExceeded, NumericalError, Unavailable
from protocol.messages import Attached, Suspended
from protocol.observation import Event
from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.stream import TokenStream
from tests.engine_core.requests import (
    PROMPT,
    SAMPLING,
    SCORED,
    assert_all_free,
    error_of,
    expected,
    run_until,
)
from tests.engine_core.rig import Rig


def crowd(rig: Rig, count: int = 12) -> list[tuple[list[int], TokenStream]]:
    prompts = [[20 + number] * (5 + number) for number in range(count)]
    return [(prompt, rig.submit(b"a", prompt, SAMPLING)) for prompt in prompts]


def assert_unharmed(streams: list[tuple[list[int], TokenStream]]) -> None:
    for prompt, stream in streams:
        assert stream.token_ids == expected(prompt, SAMPLING)


@pytest.mark.parametrize("fault", ["die", "internal_error"])
def test_a_poison_request_alone_is_ended(fault: str) -> None:
    rig = Rig()
    rig.client(b"a")
    streams = crowd(rig)
    run_until(rig, streams[0][1], 5)
    rig.poison[500] = fault
    poison = rig.submit(b"a", [3, 500, 3], SAMPLING)
    late = rig.submit(b"a", [8, 8], SAMPLING)
    rig.settle()
    assert error_of(poison).code == ("request_crashed_worker" if fault == "die" else "internal_error")
    assert rig.deaths == (2 if fault == "die" else 0), "once in company, once alone"
    assert_unharmed([*streams, ([8, 8], late)])
    assert rig.engine.stats().crashed_requests == 1
    assert_all_free(rig)


def test_kills_from_outside_make_nobody_a_culprit() -> None:
    rig = Rig()
    rig.client(b"a")
    streams = crowd(rig)
    for tokens in (3, 8, 13, 18, 23):
        run_until(rig, streams[-1][1], tokens)
        rig.kill_worker()
    rig.settle()
    assert_unharmed(streams)
    assert rig.engine.stats().crashed_requests == 0


def test_out_of_memory_runs_fewer_and_blames_nobody() -> None:
    rig = Rig()
    rig.client(b"a")
    streams = crowd(rig)
    run_until(rig, streams[-1][1], 3)
    rig.poison[streams[5][0][0]] = "out_of_memory"
    for _ in range(4):
        rig.turn()
    rig.poison.clear()
    most = rig.engine.scheduler.most_running if rig.engine.scheduler else 0
    assert 1 <= most < len(streams)
    rig.settle()
    assert_unharmed(streams)
    assert rig.engine.stats().preemptions > 0
    assert rig.engine.stats().crashed_requests == 0


def test_clients_hear_that_the_workers_are_away() -> None:
    rig = Rig()
    registry = rig.client(b"a")
    rig.workers_wire.drain()
    rig.engine.on_peer_gone(rig.worker_incarnation, crashed=False, cause="was killed")
    said = [type(message) for _, message in rig.clients_wire.sent]
    assert said == [Event, Suspended]
    rig.turn()
    assert registry.suspended
    rig.start_worker()
    rig.turn()
    assert not registry.suspended
    assert Attached in [type(message) for _, message in rig.clients_wire.sent] or registry.attached


def test_numbers_that_are_not_finite_end_one_request_and_its_blocks_are_not_found_again() -> None:
    rig = Rig()
    rig.client(b"a")
    streams = crowd(rig)
    bad = rig.submit(b"a", PROMPT, SAMPLING)
    run_until(rig, bad, 20)
    scheduler = rig.engine.scheduler
    assert scheduler is not None
    request = rig.engine.desk.clients[b"a"].requests[bad.request_id]
    keys = list(request.block_keys)
    rig.engine.desk.fail(request, NumericalError("NaN"), trusted=False)
    rig.settle()
    assert keys
    assert not any(key in found for found in scheduler.kv.prefix_cache.block_of for key in keys)
    assert isinstance(error_of(bad), NumericalError)
    assert_unharmed(streams)


def test_after_a_kill_answers_that_had_begun_do_not_wait_for_each_other() -> None:
    """Otherwise the first to be back would make the others compute their prompts in small chunks."""
    options = SchedulerOptions(inter_token_target_ms=1, max_num_batched_tokens=512)
    rig = Rig(cache=CacheOptions(block_size=16, num_kv_blocks=1024), scheduler=options)
    rig.client(b"a")
    streams = [rig.submit(b"a", [number + 1] * 100, SAMPLING) for number in range(16)]
    while min(len(stream.token_ids) for stream in streams) < 5:
        rig.now += 0.01
        assert rig.turn()
    rig.kill_worker()
    rig.plans.clear()
    counts = [len(stream.token_ids) for stream in streams]
    while any(len(stream.token_ids) == count for stream, count in zip(streams, counts, strict=True)):
        rig.now += 0.01
        assert rig.turn()
    assert len(rig.plans) <= 8, "1,700 tokens at 512 a step"
    rig.settle()
    assert all(stream.token_ids == expected([n + 1] * 100, SAMPLING) for n, stream in enumerate(streams))


def test_a_cut_link_is_told_from_a_dead_group() -> None:
    rig = Rig()
    registry = rig.client(b"a")
    stream = rig.submit(b"a", PROMPT, SAMPLING)
    run_until(rig, stream, 5)
    send, rig.workers_wire.send = rig.workers_wire.send, lambda peer, message: False  # type: ignore[method-assign]
    while not rig.engine.workers.cut:
        rig.turn()
    rig.workers_wire.send = send  # type: ignore[method-assign]
    assert rig.engine.next_deadline() == rig.now + CUT_PATIENCE_S
    rig.kill_worker()
    rig.turn()
    assert registry.suspended or stream.finish or rig.engine.workers.attached
    rig.settle()
    assert stream.token_ids == expected(PROMPT, SAMPLING)
    assert rig.engine.next_deadline() is None

    rig.submit(b"a", PROMPT, SAMPLING)
    rig.workers_wire.send = lambda peer, message: False  # type: ignore[method-assign]
    rig.turn()
    with pytest.raises(LinkCut):
        rig.pass_time(CUT_PATIENCE_S)


def test_a_plan_stays_small_enough_for_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_step, "MOST_STARTED_BYTES", 1000)
    rig = Rig()
    rig.client(b"a")
    streams = [rig.submit(b"a", PROMPT, SAMPLING) for _ in range(40)]
    rig.settle()
    assert all(stream.token_ids == expected(PROMPT, SAMPLING) for stream in streams)
    sizes = [sum(len(start.token_ids) for start in plan.started) for plan in rig.plans]
    assert max(sizes) <= 1000 + 4 * len(PROMPT)


def test_a_suspect_that_no_longer_fits_blocks_nobody() -> None:
    rig = Rig()
    rig.client(b"a")
    long = rig.submit(b"a", PROMPT * 8, SAMPLING)
    run_until(rig, long, 5)
    small = structs.replace(rig.runner.facts, max_model_len=100)
    rig.runner.facts = small
    rig.kill_worker(crashed=True)
    short = rig.submit(b"a", PROMPT, SAMPLING)
    rig.settle()
    assert isinstance(error_of(long), Unavailable)
    assert short.token_ids == expected(PROMPT, SAMPLING)


def test_evidence_is_forgotten_by_who_got_past_it() -> None:
    rig = Rig()
    rig.client(b"a")
    streams = crowd(rig, 4)
    for tokens in (3, 12, 21, 30):
        run_until(rig, streams[-1][1], tokens)
        rig.kill_worker()
        scheduler = rig.engine.scheduler
        assert scheduler is not None
        assert not scheduler.suspects, "kills far apart make nobody a suspect"
    rig.settle()
    assert_unharmed(streams)


@pytest.mark.parametrize("fault", ["not finite", "deadline"])
@pytest.mark.parametrize("sampling", [SAMPLING, SCORED], ids=["plain", "scored"])
def test_what_was_computed_comes_before_the_error(fault: str, sampling: SamplingParams) -> None:
    rig = Rig()
    rig.client(b"a")
    stream = rig.submit(b"a", PROMPT, sampling, timeout_s=60)
    run_until(rig, stream, 5)
    had, request = len(stream.token_ids), rig.engine.desk.clients[b"a"].requests[stream.request_id]
    assert len(rig.workers_wire.arrived) == 2, "of two steps, one turn takes both"
    if fault == "not finite":
        name, result = rig.workers_wire.arrived.pop()
        spoiled = structs.replace(
            result, token_ids=columns.pack_ids([-1]), failed_rows=((0, NumericalError.code),), logprobs=None
        )
        rig.workers_wire.arrived.append((name, spoiled))
    else:
        rig.now += 61
    rig.settle()
    assert error_of(stream).code == {"not finite": NumericalError, "deadline": DeadlineExceeded}[fault].code
    assert len(stream.token_ids) == request.num_output_tokens > had
    assert stream.token_ids == expected(PROMPT, sampling)[: len(stream.token_ids)]
    if sampling.logprobs is not None:
        assert [entry.top[0][0] for entry in stream._logprobs] == stream.token_ids
    assert_all_free(rig)
