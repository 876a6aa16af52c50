"""Answers to grammars: always valid, whatever dies, and nobody else's matter when one goes wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from engine_core.scheduler import Scheduler
from protocol.errors import GrammarFailed, InvalidRequest, TernError, Unsupported
from protocol.messages import Finish, Outputs
from protocol.options import CacheOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.stream import Parting, TokenStream

from .rig import Rig

MODEL = str(Path(__file__).parents[2] / "models" / "tern-mini")
TOKENIZER = tokenizers.Tokenizer.from_file(f"{MODEL}/tokenizer.json")
EOS = 2
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["bird", "fish"]},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
    },
    "required": ["name", "kind", "counts"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMAR = json.dumps({"grammars": [{"json_schema": SCHEMA}]})
PROMPT = list(range(10, 30))


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 300, "temperature": 1.0, "seed": 5, **changes})


def text_of(stream: TokenStream) -> str:
    text: str = TOKENIZER.decode(stream.token_ids, skip_special_tokens=True)
    return text


def check_valid(stream: TokenStream) -> None:
    assert stream.finish is Finish.STOP
    assert stream.token_ids[-1] == EOS
    answer = json.loads(text_of(stream))
    assert list(answer) == ["name", "kind", "counts"]
    assert len(answer["name"]) <= 6
    assert answer["kind"] in ("bird", "fish")
    assert all(0 <= count <= 99 for count in answer["counts"])


@pytest.fixture
def rig() -> Rig:
    rig = Rig(model=MODEL)
    rig.client(b"client")
    return rig


def scheduler_of(rig: Rig) -> Scheduler:
    assert rig.engine.scheduler is not None
    return rig.engine.scheduler


def error_of(stream: TokenStream) -> TernError:
    assert stream._error is not None
    return stream._error


@pytest.mark.parametrize("asynchronous", [True, False])
def test_answers_are_valid_beside_free_ones(asynchronous: bool) -> None:
    rig = Rig(model=MODEL, scheduler=SchedulerOptions(async_scheduling=asynchronous))
    rig.client(b"client")
    bound = [rig.submit(b"client", PROMPT, params(seed=seed), grammar=GRAMMAR) for seed in range(12)]
    free = [
        rig.submit(b"client", PROMPT[:i], params(seed=i, ignore_eos=True, max_tokens=60)) for i in range(1, 8)
    ]
    alone = Rig(model=MODEL)
    alone.client(b"client")
    same = [
        alone.submit(b"client", PROMPT[:i], params(seed=i, ignore_eos=True, max_tokens=60))
        for i in range(1, 8)
    ]
    rig.settle()
    alone.settle()
    for stream in bound:
        check_valid(stream)
    assert len({text_of(stream) for stream in bound}) > 6, "the seeds make no difference"
    assert [stream.token_ids for stream in free] == [stream.token_ids for stream in same]
    scheduler = scheduler_of(rig)
    assert scheduler.kv.pool.num_free + len(scheduler.kv.pool.fenced) == scheduler.kv.pool.num_blocks


def test_nobody_waits_for_a_grammar(rig: Rig) -> None:
    """While answers without one run, each of their steps is sent before the result of the one before."""
    free = rig.submit(b"client", PROMPT, params(ignore_eos=True, max_tokens=50))
    rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    turns = ahead = 0
    while not free.finish:
        rig.turn()
        turns += 1
        ahead += len(scheduler_of(rig).in_flight) == 2
    assert turns > 20
    assert ahead >= turns - 3


def test_what_is_forced_is_not_sampled(rig: Rig) -> None:
    """Far fewer rows sample than there are tokens."""
    stream = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    rig.settle()
    check_valid(stream)
    sampled = sum(len(plan.masked_rows) // 4 for plan in rig.plans)
    assert sampled < 0.7 * len(stream.token_ids)


def test_whoever_wants_logprobs_gets_one_for_each_token(rig: Rig) -> None:
    stream = rig.submit(b"client", PROMPT, params(logprobs=2), grammar=GRAMMAR)
    rig.settle()
    check_valid(stream)
    assert len(stream._logprobs) == len(stream.token_ids)


def test_an_answer_cut_short_says_so(rig: Rig) -> None:
    stream = rig.submit(b"client", PROMPT, params(max_tokens=7), grammar=GRAMMAR)
    rig.settle()
    assert stream.finish is Finish.LENGTH
    assert len(stream.token_ids) == 7
    assert text_of(stream).startswith('{"name":"')


def test_a_constant_needs_no_step_at_all(rig: Rig) -> None:
    stream = rig.submit(b"client", PROMPT, params(), grammar='start: "yes, of course"')
    rig.settle()
    assert (text_of(stream), stream.finish) == ("yes, of course", Finish.STOP)
    assert not rig.plans


def test_stop_tokens_end_an_answer(rig: Rig) -> None:
    quote = TOKENIZER.encode('"', add_special_tokens=False).ids[0]
    grammar = json.dumps({"grammars": [{"json_schema": {"type": "string", "maxLength": 3}}]})
    stream = rig.submit(b"client", PROMPT, params(stop_token_ids=(quote,)), grammar=grammar)
    rig.settle()
    assert stream.finish is Finish.STOP
    assert stream.token_ids[-1] == quote


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_survive_deaths_of_the_worker(temperature: float) -> None:
    """At every possible moment, with the same tokens as if nothing had died."""
    expected: list[list[int]] = []
    for kill_every in (0, 5, 4, 3):
        rig = Rig(model=MODEL)
        rig.client(b"client")
        streams = [
            rig.submit(b"client", PROMPT, params(seed=seed, temperature=temperature), grammar=GRAMMAR)
            for seed in range(4)
        ]
        turn = 0
        while rig.turn():
            turn += 1
            if kill_every and turn % (kill_every * 4) == 0 and rig.deaths < 12:
                rig.kill_worker()
        for stream in streams:
            check_valid(stream)
        expected = expected or [stream.token_ids for stream in streams]
        assert [stream.token_ids for stream in streams] == expected


def test_another_engine_core_goes_on_with_the_same_tokens(rig: Rig) -> None:
    whole = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    rig.settle()
    lengths = sorted({message_end(rig, i) for i in range(1, 6)})
    for length in lengths:
        other = Rig(model=MODEL)
        other.client(b"client")
        resumed = other.submit(
            b"client", PROMPT, params(), grammar=GRAMMAR, resumed_token_ids=whole.token_ids[:length]
        )
        other.settle()
        assert resumed.token_ids == whole.token_ids, f"after {length} tokens"


def message_end(rig: Rig, count: int) -> int:
    """Tokens that a client has after so many messages with tokens: a kill comes between messages."""
    outputs = [message for _, message in rig.history if isinstance(message, Outputs)]
    return sum(len(message.finishes) for message in outputs[:count])


def test_it_runs_in_few_blocks() -> None:
    """Whoever finds no block for its next token makes room, and comes back."""
    rig = Rig(model=MODEL, cache=CacheOptions(num_kv_blocks=14, block_size=8), max_model_len=100)
    rig.client(b"client")
    bound = [
        rig.submit(b"client", PROMPT, params(seed=seed, max_tokens=80), grammar=GRAMMAR) for seed in range(6)
    ]
    free = rig.submit(b"client", PROMPT, params(ignore_eos=True, max_tokens=80))
    rig.settle()
    for stream in bound:
        check_valid(stream)
    assert len(free.token_ids) == 80
    assert scheduler_of(rig).preemptions > 0


def test_chunks_of_a_long_prompt_do_not_wait_for_the_mask() -> None:
    options = SchedulerOptions(max_num_batched_tokens=16)
    rig = Rig(model=MODEL, scheduler=options)
    rig.client(b"client")
    stream = rig.submit(b"client", list(range(3, 203)), params(), grammar=GRAMMAR)
    rig.settle()
    check_valid(stream)
    assert max(len(plan.started) for plan in rig.plans) == 1


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("start: (", "expected"),
        ('{"grammars": [{"json_schema": {"not": {}}}]}', "not"),
        ("start: start", "no text"),
        ("start: /[\\x00-\\x01]{2}" + "(" * 3000 + "/", "regex"),
    ],
)
def test_a_grammar_that_cannot_be_read_ends_its_request_only(rig: Rig, grammar: str, words: str) -> None:
    good = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    bad = rig.submit(b"client", PROMPT, params(), grammar=grammar)
    rig.settle()
    check_valid(good)
    error = error_of(bad)
    assert isinstance(error, InvalidRequest)
    assert error.param == "grammar"
    assert words in error.message.lower()


def test_a_grammar_that_becomes_too_expensive_ends_its_request_only(rig: Rig) -> None:
    good = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    choice = " | ".join(f'"{word}" start' for word in range(3000))
    bad = rig.submit(b"client", PROMPT, params(), grammar=f"start: /[0-9]/ rest\nrest: {choice}")
    rig.settle()
    check_valid(good)
    assert isinstance(error_of(bad), GrammarFailed)


def test_ids_that_contradict_the_grammar_are_refused(rig: Rig) -> None:
    stream = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR, resumed_token_ids=[700, 701])
    rig.settle()
    assert isinstance(error_of(stream), InvalidRequest)


def test_what_contradicts_a_grammar_is_refused_by_name(rig: Rig) -> None:
    for field, value in (("min_tokens", 3), ("ignore_eos", True)):
        stream = rig.submit(b"client", PROMPT, params(**{field: value}), grammar=GRAMMAR)
        rig.settle()
        assert error_of(stream).param == field


def test_without_a_tokenizer_grammars_are_refused_by_name() -> None:
    rig = Rig()
    rig.client(b"client")
    stream = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    rig.settle()
    assert isinstance(error_of(stream), Unsupported)
    assert error_of(stream).param == "grammar"


def test_aborted_ones_leave_nothing(rig: Rig) -> None:
    streams = [rig.submit(b"client", PROMPT, params(seed=i), grammar=GRAMMAR) for i in range(8)]
    for stream in streams:
        rig.turn()
        rig.close(b"client", stream, Parting.ABORT)
    rig.settle()
    scheduler = scheduler_of(rig)
    assert scheduler.num_running == scheduler.num_waiting == scheduler.waiting.num_tokens == 0
    assert scheduler.kv.pool.num_free + len(scheduler.kv.pool.fenced) == scheduler.kv.pool.num_blocks


class Later:
    """Hands that do nothing until they are told to."""

    def __init__(self) -> None:
        self.works: list[Callable[[], None]] = []

    def now(self) -> float:
        return 0.0

    def worked_s(self) -> float:
        return 0.0

    def do(self, work: Callable[[], None]) -> None:
        self.works.append(work)

    def catch_up(self, most: int | None = None) -> None:
        works, self.works = self.works[:most], [] if most is None else self.works[most:]
        for work in works:
            work()


def settle(rig: Rig, hands: Later) -> None:
    while rig.turn() or hands.works:
        hands.catch_up()


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kill_after", range(1, 12))
def test_a_worker_dies_while_a_grammar_is_asked(chunked: bool, kill_after: int) -> None:
    """Whoever waits for its grammar then is started with the next worker as everyone else is."""
    hands = Later()
    rig = Rig(model=MODEL, scheduler=SchedulerOptions(enable_chunked_prefill=chunked), hands=hands)
    rig.client(b"client")
    stream = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    for turn in range(kill_after):
        rig.turn()
        if turn < kill_after - 1:
            hands.catch_up()
    rig.kill_worker()
    for _ in range(6):
        rig.turn()
    settle(rig, hands)
    check_valid(stream)
    free = Rig(model=MODEL)
    free.client(b"client")
    same = free.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    free.settle()
    assert stream.token_ids == same.token_ids


def test_what_is_forced_on_many_at_once_finds_blocks() -> None:
    """Several that were started again while their grammars were asked, which then force long texts."""
    hands = Later()
    grammar = 'start: /[ab]/ "' + "0123456789" * 4 + '" /[ab]/'
    rig = Rig(
        model=MODEL,
        cache=CacheOptions(num_kv_blocks=14, block_size=8),
        max_model_len=100,
        hands=hands,
    )
    rig.client(b"client")
    streams = [
        rig.submit(b"client", [40 + seed, *PROMPT], params(seed=seed), grammar=grammar) for seed in range(4)
    ]
    rig.turn()
    hands.catch_up()
    while not hands.works and rig.turn():
        pass
    rig.kill_worker()
    for _ in range(6):
        rig.turn()
    settle(rig, hands)
    for stream in streams:
        assert stream.finish is Finish.STOP


def test_a_worker_may_die_while_it_waits_for_masks() -> None:
    hands = Later()
    rig = Rig(model=MODEL, hands=hands)
    rig.client(b"client")
    stream = rig.submit(b"client", PROMPT, params(), grammar=GRAMMAR)
    while rig.maskless is None:
        hands.catch_up(0 if stream.token_ids else None)
        rig.turn()
    rig.kill_worker()
    settle(rig, hands)
    check_valid(stream)
