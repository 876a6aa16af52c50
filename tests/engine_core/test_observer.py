"""What people see of an engine core: true, of the moment, cheap, and nobody's text."""

from protocol import columns
from protocol.messages import ClientMessage
from protocol.observation import CACHED, FREE, MOST_CELLS, SHARED, UNLISTED, Event, Inspect, Snapshot, Stage
from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from tests.engine_core.requests import PROMPT, SAMPLING, run_until
from tests.engine_core.rig import Rig


def look(rig: Rig, peer: bytes = b"a", nonce: int = 5) -> Snapshot:
    message: list[ClientMessage] = [Inspect(nonce)]
    rig.now += 1
    rig.say(peer, message)
    rig.engine.receive()
    _, snapshot = rig.clients_wire.sent[-1]
    assert isinstance(snapshot, Snapshot)
    assert snapshot.nonce == nonce
    return snapshot


def events(rig: Rig, peer: bytes = b"a") -> list[Event]:
    return [message for to, message in rig.history if to == peer and isinstance(message, Event)]


def cells(snapshot: Snapshot) -> list[int]:
    return columns.unpack_ids(snapshot.cells).tolist()


def test_nothing_runs() -> None:
    rig = Rig(cache=CacheOptions(block_size=16, num_kv_blocks=64))
    rig.client(b"a")
    rig.settle()
    snapshot = look(rig)
    assert snapshot.requests == ()
    assert cells(snapshot) == [FREE] * 64
    assert snapshot.num_steps == 0


def test_each_block_is_of_its_request_shared_cached_or_free() -> None:
    rig = Rig(cache=CacheOptions(block_size=16, num_kv_blocks=64))
    rig.client(b"a")
    first = rig.submit(b"a", PROMPT, SAMPLING)
    run_until(rig, first, 5)
    second = rig.submit(b"a", PROMPT + [9] * 20, SAMPLING)
    run_until(rig, second, 5)
    snapshot, engine = look(rig), rig.engine
    assert engine.scheduler is not None
    requests = sorted(engine.scheduler.running, key=lambda request: request.arrival)
    assert [view.number for view in snapshot.requests] == [request.arrival for request in requests]
    assert snapshot.requests[1].num_cached_tokens == 32, "the two full blocks of the prompt"
    for block, cell in enumerate(cells(snapshot)):
        holders = [i for i, request in enumerate(requests) if block in request.block_tables[0]]
        assert cell == (SHARED if len(holders) > 1 else holders[0] if holders else FREE)
    assert cells(snapshot).count(SHARED) == 2
    view = snapshot.requests[0]
    assert view.stage is Stage.DECODING
    assert (view.num_prompt_tokens, view.max_total_tokens) == (40, 80)
    assert view.num_output_tokens >= 5
    assert view.num_blocks == cells(snapshot).count(0) + 2
    rig.settle()
    after = cells(look(rig))
    assert after.count(CACHED) > 4
    assert after.count(CACHED) + after.count(FREE) == 64


def test_steps_have_their_times() -> None:
    rig = Rig()
    rig.client(b"a")
    rig.submit(b"a", PROMPT, SAMPLING)
    rig.settle()
    snapshot = look(rig)
    seconds = columns.unpack_floats(snapshot.step_seconds)
    prompt_tokens = columns.unpack_ids(snapshot.step_prompt_tokens).tolist()
    decodes = columns.unpack_ids(snapshot.step_decodes).tolist()
    assert len(seconds) == len(prompt_tokens) == len(decodes) == snapshot.num_steps == 40
    assert (prompt_tokens[0], decodes[0]) == (40, 0)
    assert (prompt_tokens[1], decodes[1]) == (0, 1)


def test_a_crowd_is_listed_in_part_and_a_large_pool_shown_in_part() -> None:
    rig = Rig(
        cache=CacheOptions(block_size=16, num_kv_blocks=3 * MOST_CELLS - 1),
        scheduler=SchedulerOptions(max_num_seqs=300, inter_token_target_ms=0),
    )
    rig.client(b"a")
    for number in range(320):
        rig.submit(b"a", [number] * 8, SamplingParams(max_tokens=30, ignore_eos=True, temperature=0))
    while rig.engine.stats().num_running < 300:
        assert rig.turn()
    snapshot = look(rig)
    assert len(snapshot.requests) == 256
    assert snapshot.cell_stride == 3
    assert len(cells(snapshot)) == MOST_CELLS
    assert UNLISTED in cells(snapshot)
    rig.settle()


def test_waiting_requests_are_listed_in_their_order() -> None:
    rig = Rig(scheduler=SchedulerOptions(max_num_seqs=1))
    rig.client(b"a")
    first = rig.submit(b"a", PROMPT, SAMPLING)
    run_until(rig, first, 3)
    for priority in (3, 1, 2):
        rig.submit(b"a", [priority] * 9, SAMPLING, priority=priority)
    rig.turn()
    views = look(rig).requests
    assert [view.stage for view in views] == [Stage.DECODING, Stage.WAITING, Stage.WAITING, Stage.WAITING]
    assert [view.number for view in views] == [0, 2, 3, 1]
    rig.settle()


def test_a_picture_is_shown_again_until_it_is_worth_another() -> None:
    rig = Rig()
    rig.client(b"a")
    rig.client(b"b")
    before = look(rig)
    run_until(rig, rig.submit(b"a", PROMPT, SAMPLING), 3)
    rig.say(b"b", [Inspect(6)])
    rig.engine.receive()
    again = rig.clients_wire.sent[-1][1]
    assert (again.nonce, again.requests) == (6, before.requests)
    assert len(look(rig).requests) == 1
    rig.settle()


def test_a_client_learns_what_happened_before_it_came_and_what_happens_then() -> None:
    rig = Rig()
    rig.client(b"a")
    rig.submit(b"a", PROMPT, SAMPLING)
    stream = rig.submit(b"a", [7] * 30, SAMPLING)
    run_until(rig, stream, 3)
    rig.now += 5
    rig.kill_worker()
    rig.now += 1.5
    rig.settle()
    kinds = [event.kind for event in events(rig)]
    assert kinds == ["engine_core_started", "workers_ready", "workers_lost", "workers_restarted"]
    lost, back = events(rig)[2:]
    assert (lost.num_requests, lost.cause, lost.age_s) == (2, "was killed", 0)
    assert (back.num_requests, back.duration_s) == (2, 1.5)
    rig.now += 10
    rig.client(b"late")
    heard = events(rig, b"late")
    assert [(event.incarnation, event.number) for event in heard] == [(1, number) for number in range(4)]
    assert heard[-1].age_s == 10


def test_a_failed_step_and_a_lost_client_are_events() -> None:
    rig = Rig()
    rig.client(b"a")
    rig.client(b"frontend-1", incarnation=9)
    rig.poison[77] = "internal_error"
    rig.submit(b"a", [77] * 5, SAMPLING)
    rig.settle()
    rig.submit(b"frontend-1", PROMPT, SAMPLING)
    rig.turn()
    rig.engine.on_peer_gone(9, crashed=False, cause="was killed by SIGKILL")
    rig.settle()
    by_kind = {event.kind: event for event in events(rig)}
    assert by_kind["step_failed"].cause == "internal_error"
    assert by_kind["request_crashed"].num_requests == 1
    gone = by_kind["client_lost"]
    assert (gone.subject, gone.num_requests, gone.cause) == ("frontend-1", 1, "was killed by SIGKILL")


def test_a_request_is_timed_from_its_first_step() -> None:
    rig = Rig(cache=CacheOptions(block_size=16, num_kv_blocks=64))
    rig.client(b"a")
    request = rig.submit(b"a", PROMPT, SAMPLING)
    rig.now += 2
    run_until(rig, request, 1)
    rig.now += 3
    rig.settle()
    stats = rig.engine.stats()
    assert sum(stats.queue_times.counts) == sum(stats.prefill_times.counts) == 1
    assert stats.inference_times.total >= stats.prefill_times.total + 3
    assert sum(stats.step_tokens.counts) == stats.steps
    assert stats.step_tokens.total == len(PROMPT) + SAMPLING.max_tokens - 1


def test_an_answer_that_goes_on_elsewhere_is_prefilled_once_more() -> None:
    rig = Rig(cache=CacheOptions(block_size=16, num_kv_blocks=64))
    rig.client(b"a")
    rig.submit(b"a", PROMPT, SAMPLING, resumed_token_ids=[5, 6])
    rig.settle()
    assert sum(rig.engine.stats().prefill_times.counts) == 1
