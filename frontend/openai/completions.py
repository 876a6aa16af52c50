"""POST /v1/completions: prompts in (texts or ids, one or many), continuations out, whole or as a stream.

With `echo` the prompt stands before each answer. `max_tokens: 0` with `echo` scores the prompt only: one
token is sampled, because a step samples, and thrown away.
"""

import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.types import Receive, Scope, Send

from protocol.errors import InvalidRequest
from protocol.messages import EngineFacts

from ..answer import Piece, TokenEntry
from ..responses import send_json
from ..service import Service
from ..streams import Choice, Generation, Prompt, Usage, Wish
from .events import NULL_FINISH, EventStream
from .fields import GenerationFields, NumLogprobs, make_wish
from .headers import Terms, read_terms
from .logprobs import CompletionLogprobs, completion_logprobs
from .parse import parse, read_body
from .prompting import check_not_empty, encode_texts
from .refused import COMPLETIONS, Refusals
from .resumable import ResumableStream
from .usage import UsageBody, usage_body

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 1024
"""Prompts times n."""


class CompletionRequest(GenerationFields, frozen=True, kw_only=True):
    prompt: str | list[str | int | Annotated[list[int], Meta(min_length=1)]] | None = None
    """A text, several, the ids of one, or the ids of several."""
    best_of: int | None = None
    echo: bool | None = None
    logprobs: NumLogprobs | None = None
    add_special_tokens: bool | None = None


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class CompletionResponse(Struct, frozen=True, tag_field="object", tag="text_completion"):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class Completions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(CompletionRequest)
        self._refusals = Refusals(COMPLETIONS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = await self._service.door.admit()
        body = await read_body(receive)
        request = parse(self._decoder, body)
        self._refusals.check(body)
        terms = read_terms(scope, body, self._service.options.request_timeout)
        await self._service.door.attend(receive, self._answer(request, facts, terms, send))

    async def _answer(self, request: CompletionRequest, facts: EngineFacts, terms: Terms, send: Send) -> None:
        service = self._service
        model = service.model_name(request.model)
        prompts = await self._prompts(request, facts)
        wish = self._wish(request, prompts, facts, terms)
        with Generation(service, prompts, wish) as generation:
            response_id = terms.key.root if terms.key is not None else uuid.uuid4().hex
            events = CompletionEvents(service, generation, model, response_id, request)
            if request.stream:
                stream = EventStream if terms.key is None else ResumableStream
                await stream(
                    send,
                    generation,
                    events,
                    include_usage=request.include_usage,
                    continuous_usage=request.continuous_usage,
                ).run()
            else:
                await send_json(send, await events.whole())

    async def _prompts(self, request: CompletionRequest, facts: EngineFacts) -> list[Prompt]:
        special = request.add_special_tokens is not False
        service, given = self._service, request.prompt
        if given is None or given == []:
            raise InvalidRequest("prompt: required, but empty or missing", param="prompt")
        if isinstance(given, str):
            given = [given]
        texts = [one for one in given if isinstance(one, str)]
        id_lists = [one for one in given if isinstance(one, list)]
        ids = [one for one in given if isinstance(one, int)]
        if len(given) not in (len(texts), len(id_lists), len(ids)):
            raise InvalidRequest("prompt: texts, ids and lists of ids cannot be mixed", param="prompt")
        count = (1 if ids else len(given)) * (request.n or 1)
        if count > MAX_CHOICES:
            raise InvalidRequest(
                f"prompt: {count} answers (prompts times n) are over {MAX_CHOICES}", param="prompt"
            )
        if texts:
            prompts = await encode_texts(service, texts, facts, add_special_tokens=special)
        else:
            prompts = [Prompt(one) for one in id_lists or [ids]]
        check_not_empty(prompts, "prompt")
        return prompts

    def _wish(
        self, request: CompletionRequest, prompts: Sequence[Prompt], facts: EngineFacts, terms: Terms
    ) -> Wish:
        n, best_of = request.n or 1, request.best_of
        if best_of is not None and best_of != n:
            raise InvalidRequest(f"best_of: {best_of} is not n ({n}); ask for n answers", param="best_of")
        silent = request.max_tokens == 0
        if silent and not request.echo:
            raise InvalidRequest("max_tokens: 0 is only allowed together with echo", param="max_tokens")
        return make_wish(
            request,
            prompts,
            facts,
            self._service,
            prompt_field="prompt",
            terms=terms,
            max_tokens=1 if silent else request.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
            silent=silent,
        )


class CompletionEvents:
    """One response's id and shapes."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        model: str,
        response_id: str,
        request: CompletionRequest,
    ) -> None:
        self._service = service
        self._generation = generation
        self._model = model
        self._echo = bool(request.echo)
        self._width = request.logprobs
        self._visible = request.skip_special_tokens is not False
        self._id = f"cmpl-{response_id}"
        self._created = service.now()
        head = {"id": self._id, "object": "text_completion", "created": self._created, "model": model}
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['

    def opening(self, choice: Choice) -> bytes:
        if not self._echo:
            return b""
        text, entries = self._prompt(choice)
        return self._event(choice, text, self._logprobs(entries, 0), None, b"]}\n\n")

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        before = self._head + b'{"index":%d,"text":' % choice.index
        return before, b',"logprobs":null,' + NULL_FINISH + b"]}\n\n"

    def full(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        offset = len(self._prompt_text(choice)) if self._echo and piece.entries else 0
        logprobs = self._logprobs(piece.entries, offset) if piece.entries else None
        return self._event(choice, piece.text, logprobs, piece.finish_reason, _tail(usage))

    def joined(self, choice: Choice, piece: Piece, usage: Usage | None, *, first: bool) -> bytes:
        if not (first and self._echo):
            return self.full(choice, piece, usage)
        text, entries = self._prompt(choice)
        logprobs = self._logprobs([*entries, *_shifted(piece.entries, len(text))], 0)
        return self._event(choice, text + piece.text, logprobs, piece.finish_reason, _tail(usage))

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + msgspec.json.encode(usage_body(usage)) + b"}\n\n"

    async def whole(self) -> CompletionResponse:
        """The response when everything has come."""
        choices: list[CompletionChoice] = []

        async def collect(choice: Choice) -> None:
            pieces = [piece async for piece in choice]
            text, entries = self._prompt(choice) if self._echo else ("", [])
            shifted = _shifted([entry for piece in pieces for entry in piece.entries], len(text))
            choices.append(
                CompletionChoice(
                    choice.index,
                    text + "".join(piece.text for piece in pieces),
                    self._logprobs([*entries, *shifted], 0),
                    choice.finish_reason or "stop",
                )
            )

        await self._generation.run(collect)
        choices.sort(key=lambda choice: choice.index)
        usage = usage_body(self._generation.usage())
        return CompletionResponse(self._id, self._created, self._model, choices, usage)

    def _event(
        self,
        choice: Choice,
        text: str,
        logprobs: CompletionLogprobs | None,
        finish_reason: str | None,
        tail: bytes,
    ) -> bytes:
        before, _ = self.around(choice)
        middle = b',"logprobs":' + msgspec.json.encode(logprobs) + b',"finish_reason":'
        return before + msgspec.json.encode(text) + middle + msgspec.json.encode(finish_reason) + b"}" + tail

    def _prompt_text(self, choice: Choice) -> str:
        prompt = choice.prompt
        if prompt.text is not None:
            return prompt.text
        return self._service.tokenizer.decode(prompt.token_ids, skip_special_tokens=self._visible)

    def _prompt(self, choice: Choice) -> tuple[str, list[TokenEntry]]:
        """Its text, and the entries of its tokens when log-probabilities were asked for."""
        text = self._prompt_text(choice)
        if self._width is None:
            return text, []
        detokenizer = self._service.tokenizer.detokenizer(skip_special_tokens=self._visible)
        entries, offset = [], 0
        for position, token_id in enumerate(choice.prompt.token_ids):
            entries.append(TokenEntry(token_id, offset, choice.stream.prompt_logprobs.get(position)))
            offset += len(detokenizer.push((token_id,)))
        return text, entries

    def _logprobs(self, entries: Sequence[TokenEntry], offset: int) -> CompletionLogprobs | None:
        if self._width is None:
            return None
        return completion_logprobs(entries, self._width, self._service.tokenizer, offset=offset)


def _shifted(entries: Sequence[TokenEntry], offset: int) -> list[TokenEntry]:
    """Of an answer, in a text that begins with the prompt."""
    return [TokenEntry(entry.token_id, entry.offset + offset, entry.logprob) for entry in entries]


def _tail(usage: Usage | None) -> bytes:
    return b"]}\n\n" if usage is None else b'],"usage":' + msgspec.json.encode(usage_body(usage)) + b"}\n\n"
