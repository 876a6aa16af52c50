"""Users of the simulated server: what they ask, and whether what they get is what they should.

A user's request comes from a small stock, so that the right answers are computed once. A marked request
does harm to the worker that computes it: it alone must end with the error that belongs to its mark.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from random import Random

from msgspec import structs

from protocol import columns
from protocol.errors import TernError
from protocol.messages import Finish, Submit
from protocol.sampling import SamplingParams
from protocol.stream import TokenBatch, TokenStream
from worker.kv_layout import Window

from .core_process import reader_of
from .simulator import ADAPTERS, alone, vector_alone

MAX_MODEL_LEN = 128
_EPSILON_S = 1e-6


class Mark(IntEnum):
    """Seed of a request that does harm."""

    CRASH = 1_000_001
    RAISE = 1_000_002
    NAN = 1_000_003


_BLAME = {"request_crashed_worker", "internal_error"}
ERRORS_OF = {
    Mark.CRASH: {"request_crashed_worker"},
    Mark.RAISE: _BLAME,  # where several ranks compute it, none can go on
    Mark.NAN: {"numerical_error"},
}
MODEL = str(Path(__file__).parents[2] / "models" / "tern-mini")
FREE = "start: /[a-c]{1,20}/"
"""It leaves a choice at once, so that no answer is known without a step."""
GRAMMARS = (
    FREE,
    'start: /[ab]/ "0123456789012345" /[ab]/ "xyz" /[0-9]{3}/',
    '{"grammars": [{"json_schema": {"type": "object", "properties": {"kind": {"enum": ["bird", "fish"]}, '
    '"counts": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 4}}, '
    '"required": ["kind", "counts"], "additionalProperties": false}}]}',
)


@dataclass(frozen=True)
class Task:
    """A request and its answer."""

    prompt: Sequence[int]
    sampling: SamplingParams
    answer: Sequence[int]
    mark: Mark | None
    grammar: str = ""
    adapter: str = ""
    vector: bytes = b""
    """Of a prompt of which a vector is wanted, and no answer."""

    @property
    def embed(self) -> bool:
        return bool(self.vector)


def make_task(
    draw: Random, windows: Sequence[Window], mark: Mark | None = None, *, kind: str = "answer"
) -> Task:
    """Few shared heads and short tails, so that prefixes are often the same. `windows`: the model's. Kinds:
    "answer", "grammar", "embed"."""
    head = [token for _ in range(draw.randrange(4)) for token in [draw.randrange(2)] * 16]
    tail = [draw.randrange(512) for _ in range(draw.randrange(0 if head else 1, 12))]
    sampling = SamplingParams(
        max_tokens=draw.choice([1, 2, 7, draw.randint(1, 60), 60]),
        temperature=draw.choice([0.0, 1.0]),
        seed=draw.randrange(100) if mark is None else int(mark),
        ignore_eos=draw.random() < 0.5,
        stop_token_ids=tuple(draw.sample(range(512), draw.choice([0, 0, 5]))),
        logprobs=draw.choice([None, None, 1, 2]),
        prompt_logprobs=draw.choice([None] * 9 + [1]),
        allowed_token_ids=tuple(range(100, 104)) if (few := draw.random() < 0.1) else (),
        bad_words=((100, 101), (103, 103, 102)) if few and draw.random() < 0.5 else (),
    )
    prompt, adapter = (head + tail)[: MAX_MODEL_LEN - 1], draw.choice(["", "", *ADAPTERS])
    if kind == "embed":
        sampling = SamplingParams(max_tokens=1, temperature=0, seed=sampling.seed)
        submit = Submit(0, columns.pack_ids(prompt), sampling, adapter=adapter, embed=True)
        vector = vector_alone(submit, windows, MODEL)
        return Task(prompt, sampling, [], mark, adapter=adapter, vector=vector)
    submit, grammar, follower = Submit(0, columns.pack_ids(prompt), sampling, adapter=adapter), "", None
    if kind == "grammar":
        sampling = structs.replace(sampling, ignore_eos=False, allowed_token_ids=(), bad_words=())
        submit = structs.replace(submit, sampling=sampling)
        grammar = draw.choice(GRAMMARS) if mark is None else FREE
        follower = reader_of(MODEL).read(grammar)
    answer = alone(submit, MAX_MODEL_LEN, windows, MODEL, follower)
    return Task(prompt, sampling, answer, mark, grammar, adapter)


@dataclass
class Evidence:
    """Against a request, as in engine_core/suspects.py: 2 for a failure by itself, 1 for a kill."""

    total: int = 0
    alone: int = 0
    """Of that, while nothing else was computed."""

    def add(self, *, by_itself: bool, alone: bool) -> None:
        weight = 2 if by_itself else 1
        self.total += weight
        self.alone += weight * alone


@dataclass(eq=False)
class User:
    """One client of the HTTP side, who may have to come again."""

    name: str
    task: Task
    began: float
    timeout_s: float | None
    key: str
    digest: str
    tenant: str
    cache_salt: str
    priority: int
    contested: bool = False
    """Its key is used for something else, or it came again while its first connection was still open."""
    tight: bool = False
    """The queue is short: it may be refused at the door."""
    strays: bool = False
    """Frames may come twice or late: an old Submit may act again after its request has ended."""
    evidence: Evidence = field(default_factory=Evidence)
    """Shared by all visits for the same request."""
    stream: TokenStream | None = None
    outcome: str = ""
    """Empty while it waits."""

    def end(self, outcome: str) -> None:
        assert not self.outcome, f"{self.name} ends twice: {self.outcome}, then {outcome}"
        self.outcome = outcome

    def read(self, now: float) -> None:
        """Take what the stream, which has had its last message, brought; complain if it is wrong."""
        assert self.stream is not None
        tokens: list[int] = []
        finish = Finish.NONE
        try:
            while (batch := _next(self.stream)) is not None:
                assert not finish, f"{self.name}: tokens after the last message"
                tokens += batch.token_ids
                finish = batch.finish
                self._check_logprobs(batch)
        except TernError as error:
            assert not finish, f"{self.name}: an error after the last message"
            self._check_tokens(tokens)
            self._check_error(error, tokens, now)
            self.end(error.code)
            return
        if self.task.sampling.prompt_logprobs is not None:
            positions = set(range(1, len(self.task.prompt)))
            assert set(self.stream.prompt_logprobs) == positions, f"{self.name}: prompt's logprobs"
        self._check_tokens(tokens)
        assert self.stream.embedding == self.task.vector, f"{self.name} was given another vector"
        assert self.task.mark is None, f"{self.name} is marked {self.task.mark!r} and came through"
        assert tokens == self.task.answer, f"{self.name}: {len(tokens)} of {len(self.task.answer)} tokens"
        if self.task.embed:
            assert finish is Finish.STOP
            self.end("finished")
            return
        whole = len(tokens) >= min(self.task.sampling.max_tokens, MAX_MODEL_LEN - len(self.task.prompt))
        expected = {Finish.STOP, Finish.LENGTH} if whole else {Finish.STOP}
        assert finish in expected, f"{self.name} finished with {finish!r}"
        self.end("finished")

    def left(self) -> None:
        """It did not wait for the end: what it has is the beginning of the answer."""
        if self.stream is not None:
            self._check_tokens(self.stream.token_ids)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        answer = self.task.answer
        assert list(tokens) == list(answer[: len(tokens)]), f"{self.name} was given wrong tokens: {tokens}"

    def _check_logprobs(self, batch: TokenBatch) -> None:
        width = self.task.sampling.logprobs
        if width is None:
            assert batch.logprobs is None, f"{self.name} did not ask for logprobs"
        elif batch.token_ids:
            assert batch.logprobs is not None, f"{self.name}: no logprobs"
            named = [logprob.top[0][0] for logprob in batch.logprobs]
            assert named == batch.token_ids, f"{self.name}: logprobs of other tokens"

    def _check_error(self, error: TernError, tokens: Sequence[int], now: float) -> None:
        code = error.code
        late = self.timeout_s is not None and now >= self.began + self.timeout_s - _EPSILON_S
        fresh = self.strays or not tokens  # with strays, the engine core may take it for a new one
        excused = (
            (self.task.mark is not None and code in ERRORS_OF[self.task.mark])
            or (code in _BLAME and self.evidence.alone >= 2 and self.evidence.total >= 4)
            or (code == "deadline_exceeded" and late)
            or (code == "unavailable" and ((late and fresh) or self.contested))
            or (code == "idempotency_key_reused" and self.contested)
            or (code == "overloaded" and self.tight and fresh)
        )
        assert excused, f"{self.name} ({self.task.mark}) failed: {code}: {error.message}"


def _next(stream: TokenStream) -> TokenBatch | None:
    """What the stream's reader would get now; None at its end."""
    step = stream.__anext__()
    try:
        step.send(None)
    except StopIteration as got:
        batch: TokenBatch = got.value
        return batch
    except StopAsyncIteration:
        return None
    raise AssertionError("a stream waits for more after its last message")
