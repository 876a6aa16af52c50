"""What a client is told of the prefix cache: the prompt's tokens that did not have to be computed for it."""

import pytest

from protocol.options import CacheOptions
from tests.engine_core.requests import SAMPLING, expected, run_until
from tests.engine_core.rig import Rig

PROMPT = list(range(1, 101))
HIT = 96
"""Whole blocks."""


def warm(rig: Rig) -> None:
    """The prompt is in the cache."""
    rig.client(b"a")
    rig.submit(b"a", PROMPT, SAMPLING)
    rig.settle()


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_worker_that_dies_before_the_first_token_takes_the_hit_with_it(tokens: int) -> None:
    rig = Rig()
    warm(rig)
    stream = rig.submit(b"a", PROMPT, SAMPLING)
    rig.turn()
    run_until(rig, stream, tokens)
    rig.kill_worker()
    rig.settle()
    assert stream.token_ids == expected(PROMPT, SAMPLING)
    assert stream.num_cached_tokens == (HIT if tokens else 0)


def test_blocks_that_a_preempted_request_finds_again_are_its_own() -> None:
    rig = Rig(cache=CacheOptions(num_kv_blocks=24, block_size=16))
    rig.client(b"a")
    streams = [rig.submit(b"a", [i + 1] * 40, SAMPLING) for i in range(6)]
    rig.settle()
    assert rig.engine.stats().preemptions
    assert [stream.num_cached_tokens for stream in streams] == [0] * 6


def test_a_stream_that_goes_on_at_another_engine_core_keeps_its_count() -> None:
    rig = Rig()
    warm(rig)
    stream = rig.submit(b"a", PROMPT, SAMPLING)
    run_until(rig, stream, 3)
    another, registry = Rig(), rig.registries[b"a"]
    another.registries[b"a"] = registry
    another.say(b"a", registry.attach(another.now))
    another.settle()
    assert stream.token_ids == expected(PROMPT, SAMPLING)
    assert another.engine.stats().prefix_cache_hits == 0
    assert stream.num_cached_tokens == HIT
