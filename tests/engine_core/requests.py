"""Requests that the tests of the engine core send, and what is right for them."""

from protocol import columns
from protocol.errors import TernError
from protocol.messages import Submit
from protocol.sampling import SamplingParams
from protocol.stream import TokenStream
from tests.engine_core.rig import Rig
from tests.simulation.simulator import alone

SAMPLING = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
SCORED = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1, seed=5, logprobs=2, prompt_logprobs=1)
PROMPT = [1, 2, 3, 4] * 10


def expected(prompt: list[int], sampling: SamplingParams, adapter: str = "") -> list[int]:
    return alone(Submit(1, columns.pack_ids(prompt), sampling, adapter=adapter), 512)


def error_of(stream: TokenStream) -> TernError:
    assert stream._error is not None
    return stream._error


def run_until(rig: Rig, stream: TokenStream, count: int) -> None:
    while len(stream.token_ids) < count:
        assert rig.turn()


def assert_all_free(rig: Rig) -> None:
    stats = rig.engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.num_free_blocks == stats.num_blocks
