"""POST /v1/chat/completions: messages in, an assistant's message out, whole or as a stream of deltas."""

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
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
from .logprobs import ChatLogprobs, chat_logprobs
from .messages import Messages
from .parse import parse, read_body
from .prompting import check_not_empty, encode_chat
from .refused import CHAT, Refusals
from .resumable import ResumableStream
from .usage import UsageBody, usage_body


class ChatRequest(GenerationFields, frozen=True, kw_only=True):
    messages: Messages
    max_completion_tokens: int | None = None
    """The newer name of max_tokens; wins over it."""
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class AnswerMessage(Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatResponse(Struct, frozen=True, tag_field="object", tag="chat.completion"):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class ChatCompletions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(ChatRequest)
        self._refusals = Refusals(CHAT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = await self._service.door.admit()
        body = await read_body(receive)
        request = parse(self._decoder, body)
        self._refusals.check(body)
        terms = read_terms(scope, body, self._service.options.request_timeout)
        await self._service.door.attend(receive, self._answer(request, facts, terms, send))

    async def _answer(self, request: ChatRequest, facts: EngineFacts, terms: Terms, send: Send) -> None:
        service = self._service
        model = service.model_name(request.model)
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequest("top_logprobs: only allowed with logprobs: true", param="top_logprobs")
        prompt = await encode_chat(service, request.messages, request, facts)
        check_not_empty([prompt], "messages")
        wish = self._wish(request, prompt, facts, terms)
        with Generation(service, [prompt], wish) as generation:
            response_id = terms.key.root if terms.key is not None else uuid.uuid4().hex
            events = ChatEvents(service, generation, model, response_id, request.top_logprobs or 0)
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
                await send_json(send, await events.whole(with_logprobs=bool(request.logprobs)))

    def _wish(self, request: ChatRequest, prompt: Prompt, facts: EngineFacts, terms: Terms) -> Wish:
        asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        if asked is not None and asked < 1:
            name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
            raise InvalidRequest(f"{name}: expected int >= 1, got {asked}", param=name)
        return make_wish(
            request,
            [prompt],
            facts,
            self._service,
            prompt_field="messages",
            terms=terms,
            max_tokens=asked,
            default_max_tokens=self._service.options.default_max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )


class ChatEvents:
    """One response's id and shapes."""

    def __init__(
        self, service: Service, generation: Generation, model: str, response_id: str, width: int
    ) -> None:
        self._service = service
        self._generation = generation
        self._width = width
        self._id = f"chatcmpl-{response_id}"
        self._created = service.now()
        self._model = model
        head = {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": model}
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['

    def opening(self, choice: Choice) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,' % choice.index
        return self._head + delta + NULL_FINISH + b"]}\n\n"

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        before = self._head + b'{"index":%d,"delta":{"content":' % choice.index
        return before, b'},"logprobs":null,' + NULL_FINISH + b"]}\n\n"

    def full(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        tail = b"]"
        if usage is not None:
            tail += b',"usage":' + msgspec.json.encode(usage_body(usage))
        tail += b"}\n\n"
        event = b""
        if piece.text or piece.entries:
            before, _ = self.around(choice)
            logprobs = msgspec.json.encode(self._logprobs(piece.entries) if piece.entries else None)
            text = msgspec.json.encode(piece.text)
            event = before + text + b'},"logprobs":' + logprobs + b"," + NULL_FINISH + tail
        if piece.finish_reason is not None:
            delta = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":' % choice.index
            event += self._head + delta + msgspec.json.encode(piece.finish_reason) + b"}" + tail
        return event

    def joined(self, choice: Choice, piece: Piece, usage: Usage | None, *, first: bool) -> bytes:
        delta = {"role": "assistant"} if first else {}
        if first or piece.text:
            delta["content"] = piece.text
        body = {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(piece.entries) if piece.entries else None,
            "finish_reason": piece.finish_reason,
        }
        tail = b',"usage":' + msgspec.json.encode(usage_body(usage)) if usage is not None else b""
        return self._head + msgspec.json.encode(body) + b"]" + tail + b"}\n\n"

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + msgspec.json.encode(usage_body(usage)) + b"}\n\n"

    async def whole(self, *, with_logprobs: bool) -> ChatResponse:
        """The response when everything has come."""
        texts: dict[int, list[str]] = {choice.index: [] for choice in self._generation.choices}
        entries: dict[int, list[TokenEntry]] = {choice.index: [] for choice in self._generation.choices}

        async def collect(choice: Choice) -> None:
            async for piece in choice:
                texts[choice.index].append(piece.text)
                entries[choice.index].extend(piece.entries)

        await self._generation.run(collect)
        choices = [
            ChatChoice(
                choice.index,
                AnswerMessage("".join(texts[choice.index])),
                self._logprobs(entries[choice.index]) if with_logprobs else None,
                choice.finish_reason or "stop",
            )
            for choice in self._generation.choices
        ]
        usage = usage_body(self._generation.usage())
        return ChatResponse(self._id, self._created, self._model, choices, usage)

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChatLogprobs:
        return chat_logprobs(entries, self._width, self._service.tokenizer)
