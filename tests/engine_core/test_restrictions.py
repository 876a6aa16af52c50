"""Allowed tokens and bad words, from the wire to the worker and through whatever happens meanwhile."""

import pytest

from protocol.options import CacheOptions
from protocol.sampling import SamplingParams
from tests.engine_core.requests import assert_all_free, error_of, expected, run_until
from tests.engine_core.rig import Rig

ALLOWED, BAD = (100, 101, 102), ((100, 101), (102, 102, 100))
SAMPLING = SamplingParams(max_tokens=90, temperature=1, seed=4, allowed_token_ids=ALLOWED, bad_words=BAD)


def holds(answer: list[int], word: tuple[int, ...]) -> bool:
    return any(tuple(answer[i : i + len(word)]) == word for i in range(len(answer)))


def test_the_same_through_preemption_and_the_death_of_a_worker() -> None:
    rig = Rig(cache=CacheOptions(block_size=16, num_kv_blocks=24))
    rig.client(b"a")
    streams = {i: rig.submit(b"a", [i + 1] * 20, SAMPLING) for i in range(8)}
    run_until(rig, streams[0], 7)
    rig.kill_worker()
    rig.settle()
    assert rig.engine.stats().preemptions
    for i, stream in streams.items():
        assert stream.token_ids == expected([i + 1] * 20, SAMPLING)
        assert set(stream.token_ids) <= set(ALLOWED)
        assert not any(holds(stream.token_ids, word) for word in BAD)
    assert_all_free(rig)


def test_the_prompt_is_no_beginning_of_a_bad_word() -> None:
    rig = Rig()
    rig.client(b"a")
    sampling = SamplingParams(max_tokens=1, allowed_token_ids=(101,), bad_words=((100, 101),))
    stream = rig.submit(b"a", [100], sampling)
    rig.settle()
    assert stream.token_ids == [101]


def test_rules_that_leave_nothing_end_the_request_alone() -> None:
    rig = Rig()
    rig.client(b"a")
    other = rig.submit(b"a", [5], SAMPLING)
    stuck = rig.submit(b"a", [6], SamplingParams(allowed_token_ids=(100,), bad_words=((100, 100),)))
    rig.settle()
    assert (error_of(stuck).code, error_of(stuck).status) == ("no_token_allowed", 400)
    assert other.token_ids == expected([5], SAMPLING)
    assert_all_free(rig)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (SamplingParams(allowed_token_ids=(5, 512)), "allowed_token_ids names token 512"),
        (SamplingParams(bad_words=((5,), (512, 6))), "bad_words names token 512"),
    ],
)
def test_tokens_that_are_none(sampling: SamplingParams, words: str) -> None:
    rig = Rig()
    rig.client(b"a")
    stream = rig.submit(b"a", [5], sampling)
    rig.settle()
    assert words in error_of(stream).message
