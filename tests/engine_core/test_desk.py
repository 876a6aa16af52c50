"""Requests that come again, change hands, outlive their clients, or find the queue full."""

import pytest

from engine_core import clients
from engine_core.desk import MOST_UNTRIED
from engine_core.kept import Kept
from protocol import columns
from protocol.errors import DeadlineExceeded, KeyReused, Overloaded, Unavailable
from protocol.messages import Finish, Outputs, Submit
from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.stream import Parting
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


@pytest.mark.parametrize("sampling", [SAMPLING, SCORED], ids=["plain", "scored"])
def test_a_second_submit_brings_the_missing_rows_and_restarts_nothing(sampling: SamplingParams) -> None:
    rig = Rig()
    rig.client(b"a")
    stream = rig.submit(b"a", PROMPT, sampling)
    run_until(rig, stream, 10)
    lost = stream.token_ids[4:]
    del stream.token_ids[4:], stream._logprobs[4:]
    rig.say(b"a", [stream.submission(rig.now)])
    rig.settle()
    assert stream.token_ids[4 : 4 + len(lost)] == lost
    assert stream.token_ids == expected(PROMPT, sampling)
    assert stream.finish is Finish.LENGTH
    assert sum(len(plan.started) for plan in rig.plans) == 1, "the work was begun again"
    if sampling.logprobs is not None:
        assert [entry.top[0][0] for entry in stream._logprobs] == stream.token_ids
        assert sorted(stream.prompt_logprobs) == list(range(1, len(PROMPT)))
    assert_all_free(rig)


def test_the_same_id_with_another_prompt_replaces_the_request() -> None:
    rig = Rig()
    rig.client(b"a")
    stream = rig.submit(b"a", PROMPT, SAMPLING)
    run_until(rig, stream, 3)
    other = Submit(stream.request_id, columns.pack_ids([9, 9, 9]), SAMPLING)
    del stream.token_ids[:]
    rig.say(b"a", [other])
    while rig.clients_wire.arrived:
        rig.turn()
        del stream.token_ids[:]  # rows of the first that were on their way
    rig.settle()
    assert rig.engine.stats().resubmissions >= 1
    assert_all_free(rig)


@pytest.mark.parametrize("sampling", [SAMPLING, SCORED], ids=["plain", "scored"])
@pytest.mark.parametrize("when", [0, 1, 17, 40])
def test_a_keyed_request_goes_on_without_its_client_and_another_takes_it_over(
    sampling: SamplingParams, when: int
) -> None:
    rig = Rig()
    rig.client(b"a", incarnation=3)
    first = rig.submit(b"a", PROMPT, sampling, key="k", digest="d")
    run_until(rig, first, when)
    rig.engine.on_peer_gone(3, crashed=False, cause="was killed")
    del rig.registries[b"a"]
    for _ in range(5):
        rig.turn()
    rig.client(b"b")
    again = rig.submit(b"b", PROMPT, sampling, key="k", digest="d")
    rig.settle()
    assert again.token_ids == expected(PROMPT, sampling)
    assert again.finish is Finish.LENGTH
    if sampling.logprobs is not None:
        assert [entry.top[0][0] for entry in again._logprobs] == again.token_ids
        assert sorted(again.prompt_logprobs) == list(range(1, len(PROMPT)))
    if when:
        assert sum(len(plan.started) for plan in rig.plans) == 1, "the work was begun again"
    assert rig.engine.stats().detached == 1, "the answer is kept"
    rig.pass_time(31)
    assert rig.engine.stats().detached == 0
    assert_all_free(rig)


def test_an_answer_that_is_complete_for_its_client_ends_and_is_kept() -> None:
    """A stop string, which only the client sees."""
    rig = Rig()
    rig.client(b"a")
    rig.client(b"b")
    first = rig.submit(b"a", PROMPT, SAMPLING, key="k", digest="d")
    run_until(rig, first, 17)
    first.close(Parting.DONE)
    rig.settle()
    computed = rig.engine.meter.generation_tokens
    assert computed < 40
    assert_all_free(rig)
    other = rig.submit(b"b", PROMPT, SAMPLING, key="k", digest="another")
    again = rig.submit(b"b", PROMPT, SAMPLING, key="k", digest="d")
    rig.settle()
    assert isinstance(error_of(other), KeyReused)
    assert again.token_ids[:17] == first.token_ids[:17]
    assert again.finish is Finish.LENGTH, "its last token would be taken for a stop token, and left out"
    assert rig.engine.meter.generation_tokens == computed, "it was computed again"
    rig.pass_time(31)
    assert rig.engine.stats().detached == 0


def test_clients_that_have_vanished_are_not_kept() -> None:
    rig = Rig()
    for number in range(3 * MOST_UNTRIED):
        name = b"%d" % number
        rig.client(name)
        if number:
            rig.clients_wire.gone.add(name)
    assert len(rig.engine.desk.clients) <= MOST_UNTRIED + 1
    assert b"0" in rig.engine.desk.clients


def test_a_client_that_leaves_or_dies_without_a_key_takes_its_requests_along() -> None:
    rig = Rig()
    rig.client(b"a", incarnation=3)
    streams = [rig.submit(b"a", PROMPT, SAMPLING), rig.submit(b"a", PROMPT, SAMPLING, key="k")]
    run_until(rig, streams[0], 5)
    rig.engine.on_peer_gone(3, crashed=False, cause="was killed")
    del rig.registries[b"a"]
    rig.turn()
    assert rig.engine.stats().num_running == 1
    rig.now += 31
    rig.engine.advance()
    rig.settle()
    assert_all_free(rig)


def test_leaving_keeps_what_has_a_key_and_aborts_the_rest() -> None:
    rig = Rig()
    rig.client(b"a")
    plain, keyed = rig.submit(b"a", PROMPT, SAMPLING), rig.submit(b"a", PROMPT, SAMPLING, key="k")
    run_until(rig, plain, 5)
    rig.close(b"a", plain, Parting.DETACH)
    rig.close(b"a", keyed, Parting.DETACH)
    rig.turn()
    assert rig.engine.stats().num_running == 1
    back = rig.submit(b"a", PROMPT, SAMPLING, key="k")
    rig.settle()
    assert back.token_ids == expected(PROMPT, SAMPLING)


def test_who_takes_over_ends_the_other_stream() -> None:
    rig = Rig()
    rig.client(b"a")
    rig.client(b"b")
    first = rig.submit(b"a", PROMPT, SAMPLING, key="k", digest="d")
    run_until(rig, first, 5)
    second = rig.submit(b"b", PROMPT, SAMPLING, key="k", digest="d")
    rig.settle()
    assert isinstance(error_of(first), Unavailable)
    assert second.token_ids == expected(PROMPT, SAMPLING)


def test_a_key_of_another_request_is_refused_and_tenants_have_their_own_keys() -> None:
    rig = Rig()
    rig.client(b"a")
    first = rig.submit(b"a", PROMPT, SAMPLING, key="k", digest="d")
    run_until(rig, first, 5)
    other = rig.submit(b"a", [7], SAMPLING, key="k", digest="e")
    foreign = rig.submit(b"a", [7], SAMPLING, key="k", digest="e", tenant="t")
    rig.settle()
    assert isinstance(error_of(other), KeyReused)
    assert first.token_ids == expected(PROMPT, SAMPLING)
    assert foreign.token_ids == expected([7], SAMPLING)


def test_an_abort_ends_a_keyed_request_for_good() -> None:
    rig = Rig()
    rig.client(b"a")
    stream = rig.submit(b"a", PROMPT, SAMPLING, key="k")
    run_until(rig, stream, 5)
    rig.close(b"a", stream, Parting.ABORT)
    rig.settle()
    assert rig.engine.stats().detached == 0
    assert_all_free(rig)


def test_what_is_kept_is_bounded() -> None:
    rig = Rig()
    rig.engine.desk.kept = Kept(30, most=3)
    rig.client(b"a")
    for number in range(5):
        rig.submit(b"a", [number + 1], SAMPLING, key=f"k{number}")
        rig.settle()
        rig.now += 1
    assert rig.engine.stats().detached == 3
    assert rig.engine.desk.kept.find("", "k1") is None
    assert rig.engine.desk.kept.find("", "k2") is not None


def test_a_full_queue_says_when_to_come_back() -> None:
    rig = Rig(scheduler=SchedulerOptions(max_num_seqs=1, max_num_waiting=2))
    rig.client(b"a")
    done = rig.submit(b"a", PROMPT, SAMPLING)
    rig.settle()
    assert done.finish
    for _ in range(2):
        rig.submit(b"a", PROMPT, SAMPLING)
    rig.turn()
    for _ in range(2):
        rig.submit(b"a", PROMPT, SAMPLING)
        rig.turn()
    refused = rig.submit(b"a", PROMPT, SAMPLING)
    again = rig.submit(b"a", PROMPT, SAMPLING, resumed_token_ids=[])
    rig.clients_wire.arrived[-1] = (b"a", again.submission(rig.now))
    assert again.submission(rig.now).again
    rig.turn()
    error = error_of(refused)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s is not None
    assert 1 <= error.retry_after_s <= 60
    rig.settle()
    assert again.token_ids == expected(PROMPT, SAMPLING), "what was accepted before is not refused"


def test_the_queue_is_bounded_by_tokens_too() -> None:
    options = SchedulerOptions(max_num_seqs=1, max_waiting_tokens=100)
    rig = Rig(scheduler=options, cache=CacheOptions(block_size=16, num_kv_blocks=256))
    rig.client(b"a")
    streams = [rig.submit(b"a", PROMPT, SAMPLING) for _ in range(5)]
    rig.settle()
    refused = [stream for stream in streams if stream._error is not None]
    assert refused
    assert all(isinstance(error_of(stream), Overloaded) for stream in refused)
    assert all(stream.token_ids == expected(PROMPT, SAMPLING) for stream in streams if stream not in refused)


def test_a_deadline_in_the_queue_is_not_one_while_running() -> None:
    rig = Rig(scheduler=SchedulerOptions(max_num_seqs=1))
    rig.client(b"a")
    running = rig.submit(b"a", PROMPT, SAMPLING, timeout_s=5)
    waiting = rig.submit(b"a", PROMPT, SAMPLING, timeout_s=5)
    run_until(rig, running, 3)
    rig.pass_time(6)
    assert isinstance(error_of(running), DeadlineExceeded)
    assert type(error_of(waiting)) is Unavailable
    assert error_of(waiting).retry_after_s is not None
    assert_all_free(rig)


def test_rows_that_are_sent_again_keep_their_own_width() -> None:
    """Two requests with other numbers of likeliest tokens, sent again in one message."""
    rig = Rig()
    rig.client(b"a")
    few, many = (
        rig.submit(
            b"a", PROMPT, SamplingParams(max_tokens=20, ignore_eos=True, temperature=0, logprobs=width)
        )
        for width in (1, 4)
    )
    run_until(rig, many, 10)
    before = list(few._logprobs[:8]), list(many._logprobs[:8])
    for stream in (few, many):
        del stream.token_ids[2:], stream._logprobs[2:]
        rig.say(b"a", [stream.submission(rig.now)])
    rig.settle()
    for stream, first, width in ((few, before[0], 1), (many, before[1], 4)):
        assert [entry.logprob for entry in stream._logprobs[:8]] == [entry.logprob for entry in first]
        tops = [[token for token, _ in entry.top][:width] for entry in stream._logprobs]
        assert [top[0] for top in tops] == stream.token_ids
        assert tops[:8] == [[token for token, _ in entry.top][:width] for entry in first]


def test_whoever_loses_a_key_that_cannot_be_handed_over_is_told() -> None:
    rig = Rig()
    rig.client(b"a")
    rig.client(b"b")
    whole = expected(PROMPT, SCORED)
    first = rig.submit(b"a", PROMPT, SCORED, key="k", digest="d", resumed_token_ids=whole[:10])
    run_until(rig, first, 15)
    second = rig.submit(b"b", PROMPT, SCORED, key="k", digest="d")  # needs log-probabilities from 0 on
    rig.settle()
    assert isinstance(error_of(first), Unavailable)
    assert second.token_ids == whole


@pytest.mark.parametrize("sampling", [SAMPLING, SCORED], ids=["plain", "scored"])
def test_what_is_sent_again_comes_in_messages_that_fit_a_frame(
    sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "ROWS_PER_PARCEL", 7)
    rig = Rig()
    rig.client(b"a")
    rig.client(b"b")
    first = rig.submit(b"a", PROMPT, sampling, key="k")
    run_until(rig, first, 30)
    again = rig.submit(b"b", PROMPT, sampling, key="k")
    rig.settle()
    assert again.token_ids == expected(PROMPT, sampling)
    assert again.finish is Finish.LENGTH
    if sampling.logprobs is not None:
        assert [entry.top[0][0] for entry in again._logprobs] == again.token_ids
        assert sorted(again.prompt_logprobs) == list(range(1, len(PROMPT)))
    assert rig.registries[b"b"].gaps == 0
    got = [message for peer, message in rig.history if peer == b"b" and isinstance(message, Outputs)]
    assert max(len(outputs.finishes) for outputs in got) <= 7
