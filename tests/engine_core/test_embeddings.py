"""Requests for vectors in the engine core: prompts in chunks, one last message, whatever dies."""

import pytest

from protocol import columns
from protocol.errors import InvalidRequest, RequestCrashedWorker, Unsupported
from protocol.messages import Finish, Outputs
from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.stream import TokenStream
from tests.engine_core.requests import SAMPLING, assert_all_free, error_of, expected
from tests.engine_core.rig import Rig
from worker.stub import StubRunner

ONE = SamplingParams(max_tokens=1, temperature=0)
PROMPTS = [[n, 2, 3] * (1 + 7 * n) for n in range(12)]


def make_rig(monkeypatch: pytest.MonkeyPatch | None = None, **facts: object) -> Rig:
    chunked = SchedulerOptions(max_num_batched_tokens=32, max_num_seqs=8)
    if monkeypatch is not None:
        start = StubRunner.__init__

        def changed(self: StubRunner, config: object) -> None:
            start(self, config)  # type: ignore[arg-type]
            self.facts = type(self.facts)(
                **{field: getattr(self.facts, field) for field in self.facts.__struct_fields__} | facts
            )

        monkeypatch.setattr(StubRunner, "__init__", changed)
    rig = Rig(scheduler=chunked, cache=CacheOptions(block_size=16, num_kv_blocks=64))
    rig.client(b"a")
    return rig


def embed(rig: Rig, prompts: list[list[int]]) -> list[TokenStream]:
    return [rig.submit(b"a", prompt, ONE, embed=True) for prompt in prompts]


def vectors(streams: list[TokenStream]) -> list[bytes]:
    for stream in streams:
        assert (stream.finish, stream.token_ids) == (Finish.STOP, [])
        assert len(stream.embedding) == 64
    return [stream.embedding for stream in streams]


@pytest.fixture(scope="module")
def right() -> list[bytes]:
    """Each by itself."""
    found = []
    for prompt in PROMPTS:
        rig = make_rig()
        streams = embed(rig, [prompt])
        rig.settle()
        found += vectors(streams)
    assert len(set(found)) == len(PROMPTS)
    return found


def ends(rig: Rig) -> list[int]:
    """Request ids of all rows and vectors that were sent."""
    outputs = [message for _, message in rig.history if isinstance(message, Outputs)]
    rows = [i for one in outputs for i in columns.unpack(columns.UINT64, one.request_ids)]
    assert sorted(rows) == sorted(request_id for one in outputs for request_id, _ in one.embeddings)
    return rows


def test_beside_each_other_and_answers(right: list[bytes]) -> None:
    rig = make_rig()
    answer = rig.submit(b"a", [5, 6, 7], SAMPLING)
    streams = embed(rig, PROMPTS)
    rig.settle()
    assert vectors(streams) == right
    assert answer.token_ids == expected([5, 6, 7], SAMPLING)
    assert_all_free(rig)


def test_each_ends_once(right: list[bytes]) -> None:
    rig = make_rig()
    streams = embed(rig, PROMPTS)
    rig.settle()
    assert len(ends(rig)) == len(set(ends(rig))) == len(streams)


@pytest.mark.parametrize("turns", [2, 3, 5, 8])
def test_a_worker_dies(right: list[bytes], turns: int) -> None:
    rig = make_rig()
    streams = embed(rig, PROMPTS)
    for _ in range(turns):
        rig.turn()
    rig.kill_worker()
    rig.settle()
    assert vectors(streams) == right
    assert len(set(ends(rig))) == len(ends(rig))
    assert_all_free(rig)


def test_a_lost_message_is_computed_again(right: list[bytes]) -> None:
    rig = make_rig()
    streams = embed(rig, PROMPTS[:1])
    deliver, rig._deliver = rig._deliver, lambda peer, message: None  # type: ignore[method-assign]
    rig.settle()
    rig._deliver = deliver  # type: ignore[method-assign]
    assert not streams[0].embedding
    rig.now += 10
    rig.say(b"a", rig.registries[b"a"].stalled(rig.now))
    rig.settle()
    assert vectors(streams) == right[:1]


def test_submitted_again_while_it_runs(right: list[bytes]) -> None:
    rig = make_rig()
    streams = embed(rig, PROMPTS[-1:])
    rig.turn()
    rig.now += 10
    rig.say(b"a", rig.registries[b"a"].stalled(rig.now))
    rig.settle()
    assert vectors(streams) == right[-1:]
    assert len(ends(rig)) == 1


def test_whoever_crashes_the_worker_ends_alone(right: list[bytes]) -> None:
    rig = make_rig()
    rig.poison = {400: "die"}
    bad = embed(rig, [[400, 1]])
    streams = embed(rig, PROMPTS)
    rig.settle()
    assert type(error_of(bad[0])) is RequestCrashedWorker
    assert vectors(streams) == right
    assert_all_free(rig)


def test_prefixes_are_found_for_the_last_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for pooling, cached in (("last", 32), ("mean", 0)):
        rig = make_rig(monkeypatch, pooling=pooling)
        prompt = list(range(40))
        for hit in (0, cached):
            (stream,) = embed(rig, [prompt])
            rig.settle()
            assert stream.num_cached_tokens == hit
        answer = rig.submit(b"a", prompt, SAMPLING)
        rig.settle()
        assert answer.num_cached_tokens == 32  # what was computed for a vector serves answers


def test_vectors_of_a_step_fit_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(monkeypatch, embedding_size=1 << 19)  # 2 MiB each
    streams = embed(rig, [[n] for n in range(8)])
    rig.settle()
    assert all(stream.embedding for stream in streams)
    assert max(len(columns.unpack_ids(plan.scheduled_slots)) for plan in rig.plans) == 2


@pytest.mark.parametrize(
    ("options", "sampling", "field"),
    [
        ({"key": "k"}, ONE, "key"),
        ({"grammar": "start: /a/"}, ONE, "grammar"),
        ({"resumed_token_ids": [1]}, SamplingParams(max_tokens=2), "resumed_token_ids"),
        ({}, SamplingParams(max_tokens=1, logprobs=0), "logprobs"),
        ({}, SamplingParams(max_tokens=1, prompt_logprobs=0), "prompt_logprobs"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, object], sampling: SamplingParams, field: str
) -> None:
    rig = make_rig()
    stream = rig.submit(b"a", [1, 2], sampling, embed=True, **options)
    rig.settle()
    assert type(error_of(stream)) is InvalidRequest
    assert error_of(stream).param == field


def test_a_model_may_do_only_one_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(monkeypatch, generates=False)
    stream = rig.submit(b"a", [1], ONE)
    rig.settle()
    assert type(error_of(stream)) is Unsupported
    assert "embeddings only" in error_of(stream).message
    rig = make_rig(monkeypatch, generates=True, embedding_size=0)
    (stream,) = embed(rig, [[1]])
    rig.settle()
    assert "makes no embeddings" in error_of(stream).message
