"""Requests of several adapters and of none, in one batch: each gets what it would get alone, and finds no
prefix that another adapter computed, whatever dies."""

import pytest

from protocol import columns
from protocol.errors import ModelNotFound
from protocol.sampling import SamplingParams
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
from tests.simulation.simulator import ADAPTERS

ALL = ("", *ADAPTERS)


def test_every_adapter_has_its_own_answer() -> None:
    answers = [expected(PROMPT, SAMPLING, adapter) for adapter in ALL]
    assert len({tuple(answer[:4]) for answer in answers}) == len(ALL)


@pytest.mark.parametrize("sampling", [SAMPLING, SCORED], ids=["plain", "scored"])
def test_adapters_run_in_one_batch(sampling: SamplingParams) -> None:
    rig = Rig()
    rig.client(b"a")
    streams = {
        (adapter, length): rig.submit(b"a", PROMPT[:length], sampling, adapter=adapter)
        for adapter in ALL
        for length in (7, 16, 40)
    }
    rig.settle()
    for (adapter, length), stream in streams.items():
        assert stream.token_ids == expected(PROMPT[:length], sampling, adapter)
    assert max(len(plan.scheduled_slots) // columns.ID_BYTES for plan in rig.plans) == len(streams)
    assert_all_free(rig)


def test_a_prefix_is_found_only_by_requests_of_the_same_adapter() -> None:
    rig = Rig()
    rig.client(b"a")
    for again in (False, True):
        for adapter in ALL:
            for salt in ("", "salt"):
                stream = rig.submit(b"a", PROMPT, SAMPLING, adapter=adapter, cache_salt=salt)
                rig.settle()
                assert stream.token_ids == expected(PROMPT, SAMPLING, adapter)
                assert stream.num_cached_tokens == (32 if again else 0), (adapter, salt)


@pytest.mark.parametrize("crashed", [False, True])
def test_a_worker_dies_and_each_goes_on_with_its_adapter(crashed: bool) -> None:
    rig = Rig()
    rig.client(b"a")
    streams = [rig.submit(b"a", PROMPT, SAMPLING, adapter=adapter) for adapter in ALL]
    run_until(rig, streams[-1], 10)
    rig.kill_worker(crashed=crashed)
    rig.settle()
    assert [stream.token_ids for stream in streams] == [expected(PROMPT, SAMPLING, one) for one in ALL]
    started = [start.adapter for plan in rig.plans for start in plan.started]
    assert all(started.count(adapter) >= 2 for adapter in ALL)


def test_a_new_engine_core_goes_on_with_the_adapter() -> None:
    first, second = Rig(), Rig()
    first.client(b"a")
    stream = first.submit(b"a", PROMPT, SAMPLING, adapter=ADAPTERS[1])
    run_until(first, stream, 10)
    registry = first.registries[b"a"]
    second.registries[b"a"] = registry
    second.say(b"a", registry.attach(second.now))
    second.settle()
    assert stream.token_ids == expected(PROMPT, SAMPLING, ADAPTERS[1])
    assert_all_free(second)


@pytest.mark.parametrize("adapter", ALL)
def test_a_kept_request_is_taken_over_only_with_its_adapter(adapter: str) -> None:
    """Rows of one adapter never continue in another, whatever key a client sends."""
    rig = Rig()
    rig.client(b"a")
    rig.client(b"b")
    first = rig.submit(b"a", PROMPT, SAMPLING, adapter="red", key="k", digest="d")
    run_until(rig, first, 3)
    again = rig.submit(b"b", PROMPT, SAMPLING, adapter=adapter, key="k", digest="d")
    rig.settle()
    assert again.token_ids == expected(PROMPT, SAMPLING, adapter)
    started = [start.adapter for plan in rig.plans for start in plan.started]
    assert started == (["red"] if adapter == "red" else ["red", adapter])
    assert_all_free(rig)


def test_an_unknown_adapter_is_refused_with_those_that_there_are() -> None:
    rig = Rig()
    rig.client(b"a")
    stream = rig.submit(b"a", PROMPT, SAMPLING, adapter="green")
    rig.settle()
    assert isinstance(error_of(stream), ModelNotFound)
    assert error_of(stream).message == "adapter 'green' is not loaded; loaded: blue, red"
    assert error_of(stream).param == "adapter"
