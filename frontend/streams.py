"""Generation: all answers of one request, from token streams to pieces of text. Endpoints only shape JSON.

    prompt 0 ─┬─ choice 0 ── TokenStream ── Answer      index = prompt · n + i
              └─ choice 1 ── TokenStream ── Answer
    prompt 1 ─┬─ choice 2 …

Each choice is one request to the engine core (the prompt's KV is shared through the prefix cache). When
one fails, or nobody wants them any more, `close` aborts them all. A request with a key is left running when
its client goes away; whoever repeats it with the same key gets the same tokens, and skips those it has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct, structs

from protocol.client import Parting, TokenBatch, TokenLogprob, TokenStream
from protocol.errors import InvalidRequest, TernError, Unavailable
from protocol.messages import Finish
from protocol.sampling import MAX_SEED, SamplingParams

from .answer import LENGTH, Answer, Piece, TokenEntry
from .idempotency import Key
from .metrics import Stopwatch
from .reading import Reading
from .request_log import note
from .service import Service
from .stop_strings import StopStrings


class Prompt(Struct, frozen=True):
    """One prompt, as ids; `text` is what the client wrote, or None when it sent ids."""

    token_ids: list[int]
    text: str | None = None


class Wish(Struct, frozen=True, kw_only=True):
    """What is to be made of each prompt."""

    sampling: tuple[SamplingParams, ...]
    """Per prompt. Choice i of a prompt uses seed + i: it does not depend on the other prompts."""
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    adapter: str = ""
    grammar: str = ""
    """What each answer has to follow, as `Grammars.compile` gives it."""
    reading: Reading | None = None
    """How each answer is read into parts; None: it is text."""
    silent: bool = False
    """Only the prompt is of interest: the one token that has to be sampled is thrown away."""
    stream_interval: int = 1
    """Tokens that a piece after the first waits for."""
    timeout_s: float | None = None
    key: Key | None = None
    positions: tuple[int, ...] = ()
    """Per choice: output tokens whose pieces the client has; empty: none."""


class Usage(Struct, frozen=True):
    """Token counts over all prompts and answers; a prompt counts once, however many answers it gets."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_answer_tokens: int
    num_reasoning_tokens: int = 0
    """Of the answer's."""


class Choice:
    """One answer. Iterate it once for its pieces, of which the last has a finish_reason."""

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        stream: TokenStream,
        answer: Answer,
        watch: Stopwatch,
        interval: int = 1,
    ) -> None:
        """`interval`: tokens that a piece after the first waits for."""
        self.index = index
        self.prompt = prompt
        self.stream = stream
        self._answer = answer
        self._watch = watch
        self._open = True
        self._broken = False
        """The stream has failed; what is raised next is the error."""
        self._rest: TokenBatch | None = None
        """What came together with the last token that was skipped."""
        self._interval = interval
        self._num_told = 0
        self._sum_logprobs = 0.0

    @property
    def num_tokens(self) -> int:
        return self._answer.num_tokens

    @property
    def ending(self) -> TokenEntry | None:
        """The token that ended it, if it is no text and log-probabilities were asked for."""
        return self._answer.ending

    @property
    def num_reasoning_tokens(self) -> int:
        return self._answer.num_reasoning_tokens

    @property
    def finish_reason(self) -> str | None:
        return self._answer.finish_reason

    @property
    def stop_string(self) -> str | None:
        """The one that ended it."""
        return self._answer.stop_string

    @property
    def position(self) -> int:
        """Output tokens that its pieces so far, and what is held back, are made of."""
        return self._answer.num_tokens or int(self.finish_reason is not None)

    @property
    def mean_logprob(self) -> float:
        """Per token used, if log-probabilities were asked for."""
        return self._sum_logprobs / self.num_tokens if self.num_tokens else 0.0

    def new_token_ids(self) -> list[int]:
        """Those used since the last call, whether or not their text has gone out."""
        told, self._num_told = self._num_told, self.num_tokens
        return self.stream.token_ids[told : self.num_tokens]

    async def skip(self, count: int) -> None:
        """Take the first tokens, whose pieces the client has. Raises InvalidRequest if there are fewer.

        With a count of 0, wait for the first.
        """
        if not count:
            self._rest = await self.stream.__anext__()
            return
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        finish = Finish.NONE
        while len(token_ids) < count and not finish:
            batch = await self.stream.__anext__()
            if batch.finish is Finish.ABORT:
                raise self._aborted()
            token_ids += batch.token_ids
            logprobs += batch.logprobs or ()
            finish = batch.finish
        if len(token_ids) > count:
            self._rest = TokenBatch(token_ids[count:], finish, logprobs[count:] or None)
            finish = Finish.NONE
        self._answer.take(TokenBatch(token_ids[:count], finish, logprobs[:count] or None))
        if self.finish_reason is not None:
            self.close(self.finish_reason, Parting.DONE)
        self._num_told = self.num_tokens
        if self.position != count:
            raise InvalidRequest(
                f"Last-Event-ID: {count} is beyond the {self.position} tokens of the answer",
                param="Last-Event-ID",
            )

    def __aiter__(self) -> "Choice":
        return self

    async def __anext__(self) -> Piece:
        """What may be sent now; never empty. Hot path: one wake-up for all that has come."""
        while self._open:
            try:
                batch = await self.stream.__anext__() if self._rest is None else self._take_rest()
            except TernError:
                if self._broken:
                    raise
                self._broken = True
                piece = self._answer.break_off()
                if piece.text or piece.entries or piece.parts:
                    return piece
                continue  # to the same error
            if batch.finish is Finish.ABORT:
                raise self._aborted()
            self._watch.lap(len(batch.token_ids))
            if self._interval > 1 and self.num_tokens:
                batch = await self._filled(batch)
            before = self.num_tokens
            piece = self._answer.take(batch)
            if batch.logprobs is not None:
                self._sum_logprobs += sum(one.logprob for one in batch.logprobs[: self.num_tokens - before])
            if piece.finish_reason is not None:
                self.close(piece.finish_reason, Parting.DONE)
                return piece
            if piece.text or piece.entries or piece.parts:
                return piece
        raise StopAsyncIteration

    def close(self, reason: str = "abort", parting: Parting = Parting.ABORT) -> None:
        """Nothing more is read. The first reason given is the one that counts."""
        if self._open:
            self._open = False
            self.stream.close(parting)
            self._watch.stop(self._answer.num_tokens, reason)

    def break_off(self, error: TernError) -> None:
        """Nothing more is to come but this error, behind what has come."""
        if self._open:
            self.stream.close()
            self.stream.fail(error)

    async def _filled(self, batch: TokenBatch) -> TokenBatch:
        """With what comes behind it, up to the interval or the end."""
        while len(batch.token_ids) < self._interval and not batch.finish:
            try:
                more = await self.stream.__anext__()
            except TernError:
                return batch  # the error comes again when this has gone out
            self._watch.lap(len(more.token_ids))
            logprobs = [*(batch.logprobs or ()), *(more.logprobs or ())]
            batch = TokenBatch(batch.token_ids + more.token_ids, more.finish, logprobs or None)
        if batch.finish is Finish.ABORT:
            raise self._aborted()
        return batch

    def _aborted(self) -> Unavailable:
        self.close("error")
        return Unavailable("the engine core ended this request before it was complete")

    def _take_rest(self) -> TokenBatch:
        rest, self._rest = self._rest, None
        assert rest is not None
        return rest


class _SilentAnswer(Answer):
    """Of a prompt that is only to be scored: ends at the first token, which is not used."""

    def take(self, batch: object) -> Piece:
        self.finish_reason = LENGTH
        return Piece("", LENGTH)


class Generation:
    """Submits a request's choices when made. Leave `with` to abort what has not finished."""

    def __init__(self, service: Service, prompts: Sequence[Prompt], wish: Wish) -> None:
        self._prompts = prompts
        for prompt in prompts:
            service.metrics.prompt_tokens.inc(len(prompt.token_ids))
            service.metrics.request_prompt_tokens.observe(len(prompt.token_ids))
        self.choices = [
            _start(service, index * wish.n + i, prompt, wish, sampling, i)
            for index, (prompt, sampling) in enumerate(zip(prompts, wish.sampling, strict=True))
            for i in range(wish.n)
        ]
        self.reading = wish.reading
        self._n = wish.n
        self._positions = wish.positions or (0,) * len(self.choices)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        usage = self.usage()
        note(
            prompt_tokens=usage.num_prompt_tokens,
            cached_tokens=usage.num_cached_tokens,
            completion_tokens=usage.num_answer_tokens,
            finish_reason=",".join(str(choice.finish_reason) for choice in self.choices),
        )
        cancelled = kind is None or issubclass(kind, (asyncio.CancelledError, GeneratorExit))
        for choice in self.choices:
            choice.close("abort" if cancelled else "error", Parting.DETACH if cancelled else Parting.ABORT)

    async def skip(self) -> None:
        """What the client has. Raises what is wrong with any choice before anything of another is written."""
        await self.run(lambda choice: choice.skip(self._positions[choice.index]))

    def run(self, write: Callable[[Choice], Awaitable[None]]) -> Awaitable[None]:
        """Write every choice, all at once. Raises the first error, when all that has come is written."""
        return write(self.choices[0]) if len(self.choices) == 1 else self._run_all(write)

    async def _run_all(self, write: Callable[[Choice], Awaitable[None]]) -> None:
        tasks = [asyncio.ensure_future(write(choice)) for choice in self.choices]
        try:
            await asyncio.gather(*tasks)
        except TernError as error:
            for choice in self.choices:
                choice.break_off(error)
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        finally:
            for task in tasks:
                task.cancel()

    def usage(self) -> Usage:
        """So far."""
        return Usage(
            num_prompt_tokens=sum(len(prompt.token_ids) for prompt in self._prompts),
            num_cached_tokens=sum(choice.stream.num_cached_tokens for choice in self.choices[:: self._n]),
            num_answer_tokens=sum(choice.num_tokens for choice in self.choices),
            num_reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self.choices),
        )


def _start(
    service: Service, index: int, prompt: Prompt, wish: Wish, sampling: SamplingParams, i: int
) -> Choice:
    if i:
        sampling = structs.replace(sampling, seed=(sampling.seed + i) & MAX_SEED)
    reading = wish.reading
    detokenizer = service.tokenizer.detokenizer(
        skip_special_tokens=wish.skip_special_tokens,
        shown=reading.shown_token_ids if reading is not None else frozenset(),
    )
    answer = (_SilentAnswer if wish.silent else Answer)(
        detokenizer,
        StopStrings(wish.stop, include=wish.include_stop) if wish.stop else None,
        include_stop=wish.include_stop,
        min_tokens=sampling.min_tokens,
        logprobs=sampling.logprobs is not None,
        reader=reading.reader(index) if reading is not None else None,
    )
    stream = service.client.submit(
        prompt.token_ids,
        sampling,
        priority=wish.priority,
        tenant=wish.tenant,
        cache_salt=wish.cache_salt,
        adapter=wish.adapter,
        grammar=wish.grammar,
        timeout_s=wish.timeout_s,
        key=wish.key.of_choice(index) if wish.key is not None else "",
        digest=wish.key.digest if wish.key is not None else "",
    )
    return Choice(index, prompt, stream, answer, Stopwatch(service.metrics), wish.stream_interval)
