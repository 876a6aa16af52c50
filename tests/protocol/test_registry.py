"""The registry against an engine core that loses, repeats and forgets: no socket, and a clock of our own."""

import math
from typing import Any

import pytest

from protocol import columns
from protocol.bounds import MAX_ENTRIES
from protocol.errors import (
    InternalError,
    InvalidRequest,
    KeyReused,
    NotAttached,
    Overloaded,
    ProtocolMismatch,
)
from protocol.messages import (
    NO_TOKEN,
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    AttachRefused,
    ClientMessage,
    EngineFacts,
    Finish,
    Leave,
    LogprobBlock,
    Outputs,
    PromptLogprobs,
    Refused,
    Submit,
    Suspended,
)
from protocol.registry import Registry
from protocol.sampling import SamplingParams
from protocol.sockets import fingerprint
from protocol.stream import Parting, TokenStream

FACTS = EngineFacts("m", 512, 512, 16, 64, (0,), 8)
ATTACHED = Attached(PROTOCOL_VERSION, fingerprint(), 1, FACTS)
LONG = SamplingParams(max_tokens=100)


def outputs(*rows: tuple[int, int, int], **fields: Any) -> Outputs:
    """Rows of (request id, index, token id); the last is an end where the token is NO_TOKEN."""
    ids, indexes, tokens = zip(*rows, strict=True) if rows else ((), (), ())
    return Outputs(
        epoch=1,
        step=1,
        request_ids=columns.pack(columns.UINT64, ids),
        indexes=columns.pack(columns.UINT32, indexes),
        token_ids=columns.pack_ids(tokens),
        finishes=bytes(Finish.ABORT if token == NO_TOKEN else Finish.NONE for token in tokens),
        **fields,
    )


def scores(tokens: list[int], rows: list[int] | None = None) -> LogprobBlock:
    """Log-probability of token t is -t."""
    return LogprobBlock(
        rows=columns.pack(columns.UINT32, range(len(tokens)) if rows is None else rows),
        width=1,
        chosen=columns.pack(columns.FLOAT32, [-token for token in tokens]),
        top_ids=columns.pack_ids(tokens),
        top_values=columns.pack(columns.FLOAT32, [-token for token in tokens]),
    )


def resumed(message: ClientMessage) -> list[int]:
    assert isinstance(message, Submit)
    return list(columns.unpack_ids(message.resumed_token_ids))


@pytest.fixture
def registry() -> Registry:
    registry = Registry("test", 7, lambda stream, parting: None)
    registry.attach(0.0)
    registry.handle(ATTACHED, 0.0)
    return registry


def open_stream(registry: Registry, sampling: SamplingParams = LONG, **fields: Any) -> TokenStream:
    stream, messages = registry.submit([1, 2, 3], sampling, 0.0, **fields)
    assert [type(message) for message in messages] == [Submit]
    return stream


def test_streams_are_submitted_once_the_engine_core_answers() -> None:
    registry = Registry("test", 7, lambda stream, parting: None)
    stream, messages = registry.submit([1], LONG, 0.0, key="k", digest="d", timeout_s=10)
    assert messages == []
    assert registry.attach(1.0) == [Attach(PROTOCOL_VERSION, fingerprint(), "test", 7)]
    [submit] = registry.handle(ATTACHED, 4.0)
    assert isinstance(submit, Submit)
    assert (submit.request_id, submit.key, submit.digest) == (stream.request_id, "k", "d")
    assert submit.timeout_s == 6
    assert not submit.again
    assert registry.resubmitted == 0
    assert (registry.facts, registry.epoch) == (FACTS, 1)
    assert registry.handle(ATTACHED, 5.0) == []  # a new epoch, or the same answer twice


def test_a_new_engine_core_is_told_what_the_streams_have(registry: Registry) -> None:
    stream = open_stream(registry)
    registry.handle(outputs((stream.request_id, 0, 10), (stream.request_id, 1, 11)), 1.0)
    registry.attach(2.0)
    assert not registry.attached
    [submit] = registry.handle(ATTACHED, 2.0)
    assert isinstance(submit, Submit)
    assert resumed(submit) == [10, 11]
    assert submit.again
    registry.handle(outputs((stream.request_id, 1, 11)), 2.0)  # of the old one, late
    registry.handle(outputs((stream.request_id, 2, 12)), 2.0)
    assert stream.token_ids == [10, 11, 12]
    assert (registry.resubmitted, registry.gaps) == (1, 0)


def test_a_gap_is_submitted_again_once_and_nothing_is_taken_twice(registry: Registry) -> None:
    stream = open_stream(registry)
    one = stream.request_id
    registry.handle(outputs((one, 0, 10)), 0.0)
    [submit] = registry.handle(outputs((one, 2, 12)), 0.0)
    assert resumed(submit) == [10]
    assert registry.handle(outputs((one, 3, 13)), 0.0) == []
    assert registry.handle(outputs((one, 1, 11), (one, 2, 12), (one, 3, 13)), 0.0) == []
    assert (
        registry.handle(outputs((one, 1, 11), (one, 3, 13), (one, 4, NO_TOKEN), (one, 4, NO_TOKEN)), 0.0)
        == []
    )
    assert stream.token_ids == [10, 11, 12, 13]
    assert stream.finish is Finish.ABORT
    assert registry.streams == {}
    assert registry.gaps == 1
    assert registry.handle(outputs((one, 4, 14)), 0.0) == []
    assert registry.handle(Refused(one, "overloaded", "x", True), 0.0) == []
    assert stream.token_ids == [10, 11, 12, 13]


def test_a_silent_stream_is_submitted_again_with_growing_patience(registry: Registry) -> None:
    stream = open_stream(registry)
    registry.handle(outputs((stream.request_id, 0, 10)), 1.0)
    asked = [second for second in range(200) if registry.stalled(float(second))]
    assert asked == [5, 15, 35, 75, 135, 195]  # seen to have moved at 0
    registry.handle(outputs((stream.request_id, 1, 11)), 200.0)
    asked = [second for second in range(200, 220) if registry.stalled(float(second))]
    assert asked == [205, 215]
    [submit] = registry.stalled(235.0)
    assert resumed(submit) == [10, 11]


def test_an_attach_without_an_answer_is_sent_again() -> None:
    registry = Registry("test", 0, lambda stream, parting: None)
    assert not registry.stalled(99.0)  # nobody to attach to
    registry.attach(0.0)
    asked = [second for second in range(40) if registry.stalled(float(second))]
    assert asked == [1, 3, 7, 15, 25, 35]
    registry.handle(ATTACHED, 40.0)
    assert not registry.waiting
    assert registry.stalled(99.0) == []


def test_while_suspended_streams_wait_and_the_attach_is_repeated(registry: Registry) -> None:
    open_stream(registry)
    registry.handle(Suspended("restarting"), 10.0)
    assert registry.suspended
    assert registry.attached
    assert [type(message) for message in registry.stalled(11.0)] == [Attach]
    assert registry.handle(ATTACHED, 12.0) == []  # the same engine core: it has the stream
    assert not registry.suspended
    assert registry.stalled(16.0) == []  # there was a reason for the silence
    assert len(registry.stalled(17.0)) == 1


def test_an_engine_core_that_does_not_know_us_is_attached_to_again(registry: Registry) -> None:
    streams = [open_stream(registry) for _ in range(2)]
    refused = [Refused(stream.request_id, NotAttached.code, "attach first", True) for stream in streams]
    assert [type(message) for message in registry.handle(refused[0], 5.0)] == [Attach]
    assert registry.handle(refused[1], 5.0) == []
    assert len(registry.handle(ATTACHED, 5.0)) == 2


async def test_refusals_keep_their_class_and_their_time(registry: Registry) -> None:
    cases: list[tuple[Refused, type[Exception], float | None]] = [
        (Refused(0, "overloaded", "later", True, "", 2.5), Overloaded, 2.5),
        (Refused(0, "idempotency_key_reused", "other", False), KeyReused, None),
        (Refused(0, "from the future", "?", False), InternalError, None),
    ]
    for number, (refused, kind, retry_after_s) in enumerate(cases, 1):
        stream = open_stream(registry)
        assert stream.request_id == number
        registry.handle(
            Refused(number, refused.code, refused.message, refused.retryable, "", refused.retry_after_s), 0.0
        )
        with pytest.raises(kind) as raised:
            await anext(stream)
        assert raised.value.retry_after_s == retry_after_s  # type: ignore[attr-defined]
    assert registry.streams == {}


async def test_another_protocol_fails_what_is_open_and_what_comes(registry: Registry) -> None:
    before = open_stream(registry)
    registry.handle(AttachRefused(99, "x", "install the same version"), 0.0)
    after, messages = registry.submit([1], LONG, 0.0)
    assert messages == registry.stalled(99.0) == []
    for stream in (before, after):
        with pytest.raises(ProtocolMismatch, match="same version"):
            await anext(stream)
    assert not registry.waiting


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("timeout_s", 1e9, "expected float <= 1000000.0"),
        ("timeout_s", -1.0, "expected float > 0.0"),
        ("timeout_s", math.nan, "expected float"),
        ("priority", 1 << 40, "expected int <= 2147483647"),
        ("tenant", "t" * 257, "expected str of length <= 256"),
        ("key", "k" * 257, "expected str of length <= 256"),
        ("resumed_token_ids", range(1 + (1 << 20)), "expected bytes of length <= 4194304"),
    ],
)
async def test_what_the_engine_core_would_drop_fails_at_once(
    registry: Registry, field: str, value: Any, rule: str
) -> None:
    stream, messages = registry.submit([1], LONG, 0.0, **{field: value})
    assert messages == []
    assert registry.streams == {}
    with pytest.raises(InvalidRequest, match=f"{field}: {rule}") as raised:
        await anext(stream)
    assert raised.value.param == field


async def test_a_nested_field_that_breaks_a_rule_is_named(registry: Registry) -> None:
    stream, _ = registry.submit([1], SamplingParams(temperature=-1.0), 0.0)
    with pytest.raises(InvalidRequest, match=r"sampling: expected float >= 0\.0"):
        await anext(stream)


def test_closing_aborts_and_detaching_leaves(registry: Registry) -> None:
    first, second, third, fourth = (open_stream(registry, key=key) for key in ("", "a", "b", "c"))
    assert registry.close(first, Parting.ABORT) == [Abort((first.request_id,))]
    assert registry.close(first, Parting.ABORT) == []
    assert registry.close(second, Parting.DETACH) == [Leave((second.request_id,))]
    assert registry.close(fourth, Parting.DONE) == [Leave((fourth.request_id,), done=True)]
    for parting in (Parting.DETACH, Parting.DONE):  # without a key, there is nothing to keep
        plain = open_stream(registry)
        assert registry.close(plain, parting) == [Abort((plain.request_id,))]
    registry.attach(0.0)
    assert registry.close(third, Parting.DETACH) == []  # the new engine core has not got it
    assert registry.handle(ATTACHED, 0.0) == []


def test_a_stream_says_how_it_is_closed() -> None:
    said: list[tuple[int, Parting]] = []
    registry = Registry("test", 0, lambda stream, parting: said.append((stream.request_id, parting)))
    stream, _ = registry.submit([1], LONG, 0.0)
    stream.close()
    stream.close(Parting.DETACH)
    assert said == [(1, Parting.ABORT), (1, Parting.DETACH)]


def test_all_streams_are_aborted_in_messages_that_decode(registry: Registry) -> None:
    for number in range(MAX_ENTRIES + 1):
        registry.streams[number] = None  # type: ignore[assignment]
    aborts = registry.close_all()
    assert [len(abort.request_ids) for abort in aborts if isinstance(abort, Abort)] == [MAX_ENTRIES, 1]
    assert registry.streams == {}


async def test_log_probabilities_stay_with_their_tokens(registry: Registry) -> None:
    scored = open_stream(registry, SamplingParams(max_tokens=9, logprobs=1))
    plain = open_stream(registry)
    one, two = scored.request_id, plain.request_id
    registry.handle(outputs((two, 0, 9), (one, 0, 10), logprobs=scores([10], [1])), 0.0)
    registry.handle(outputs((one, 2, 12), logprobs=scores([12])), 0.0)  # 1 is lost
    rows = ((one, 0, 10), (one, 1, 11), (two, 1, 9), (one, 2, 12), (one, 3, NO_TOKEN))
    registry.handle(outputs(*rows, logprobs=scores([10, 11, 12], [0, 1, 3])), 0.0)
    batch = await anext(scored)
    assert batch.token_ids == [10, 11, 12]
    assert batch.logprobs is not None
    assert [(entry.logprob, entry.top) for entry in batch.logprobs] == [
        (-t, ((t, -t),)) for t in (10, 11, 12)
    ]
    assert batch.finish is Finish.ABORT
    assert (await anext(plain)).logprobs is None


def test_no_token_is_taken_before_the_whole_prompt_is_scored(registry: Registry) -> None:
    stream = open_stream(registry, SamplingParams(max_tokens=9, prompt_logprobs=1))
    plain = open_stream(registry)
    one, two = stream.request_id, plain.request_id
    registry.handle(outputs(prompt_logprobs=(PromptLogprobs(one, 1, scores([2])),)), 0.0)
    # that of position 2 is lost
    [submit] = registry.handle(outputs((one, 0, 10), (two, 0, 20)), 0.0)
    assert resumed(submit) == []
    assert registry.handle(outputs((two, 1, 21), (one, 1, 11)), 0.0) == []
    assert (stream.token_ids, plain.token_ids) == ([], [20, 21])
    again = (PromptLogprobs(one, 1, scores([2])), PromptLogprobs(one, 2, scores([3])))
    assert registry.handle(outputs((one, 0, 10), (one, 1, 11), prompt_logprobs=again), 0.0) == []
    assert stream.token_ids == [10, 11]
    assert {place: entry.logprob for place, entry in stream.prompt_logprobs.items()} == {1: -2, 2: -3}
    registry.handle(outputs((one, 2, 12), (two, 2, NO_TOKEN)), 0.0)
    assert stream.token_ids == [10, 11, 12]
    assert list(registry.streams) == [one]


def test_a_refused_prompt_needs_no_scores(registry: Registry) -> None:
    stream = open_stream(registry, SamplingParams(prompt_logprobs=1))
    registry.handle(outputs((stream.request_id, 0, NO_TOKEN)), 0.0)
    assert stream.finish is Finish.ABORT
    assert registry.streams == {}


@pytest.mark.parametrize(
    "bad",
    [
        Outputs(1, 1, b"\0" * 8, b"", b"", b""),
        Outputs(1, 1, b"\0" * 7, b"\0" * 4, b"\0" * 4, b"\0"),
        Outputs(1, 1, columns.pack(columns.UINT64, [1]), b"\0" * 4, b"\0" * 4, b"\xff"),
        outputs((1, 0, 5), logprobs=LogprobBlock(b"\0" * 4, 32, b"", b"", b"")),
        outputs((1, 0, 5), prompt_logprobs=(PromptLogprobs(1, 0, LogprobBlock(bytes(4), 1, b"", b"", b"")),)),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_together_are_counted(registry: Registry, bad: Outputs) -> None:
    stream = open_stream(registry)
    assert registry.handle(bad, 0.0) == []
    assert registry.malformed == 1
    have = len(stream.token_ids)
    registry.handle(outputs((stream.request_id, have, 77)), 0.0)
    assert stream.token_ids[-1] == 77
