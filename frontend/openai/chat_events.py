"""What /v1/chat/completions answers: an assistant's message, whole or as a stream of deltas."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..answer import Piece, TokenEntry
from ..service import Service
from ..streams import Choice, Generation, Usage
from .chat_message import AnswerMessage, Message, read_delta
from .events import NULL_FINISH, ChunkFrame, token_ids_member
from .extras import Extras, or_unset
from .logprobs import ChatLogprobs, PromptLogprobsBody, chat_logprobs
from .usage import UsageBody, usage_body


class ChatChoice(Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET


class ChatResponse(Struct, frozen=True, tag_field="object", tag="chat.completion"):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobsBody | UnsetType = UNSET


class ChatEvents:
    """One response's id and shapes."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        model: str,
        response_id: str,
        width: int | None,
        extras: Extras,
    ) -> None:
        """`width`: likeliest tokens beside the chosen one in log-probabilities; None: none are wanted."""
        self._service = service
        self._generation = generation
        self._width = width
        self._extras = extras
        self.plain = not extras.token_ids and generation.reading is None
        self._id = f"chatcmpl-{response_id}"
        self._created = service.now()
        self._model = model
        self._frame = ChunkFrame(self._id, "chat.completion.chunk", self._created, model)

    def opening(self, choice: Choice, usage: Usage | None) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,' % choice.index
        begin = self._frame.begin(self._extras.prompt_token_ids(choice))
        return begin + delta + NULL_FINISH + self._frame.tail(usage)

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        before = self._frame.head + b'{"index":%d,"delta":{"content":' % choice.index
        return before, b'},"logprobs":null,' + NULL_FINISH + self._frame.tail(None)

    def full(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        event, tail, ids = b"", self._frame.tail(usage), self._extras.new_token_ids(choice)
        if piece.parts:
            body = self._body(choice, read_delta(piece.parts), piece, ids, None)
            event = self._frame.head + body + tail
            ids = None if ids is None else []
        elif piece.text or piece.entries:
            before = self._frame.head + b"{" + token_ids_member(ids)
            before += b'"index":%d,"delta":{"content":' % choice.index
            ids = None if ids is None else []
            logprobs = msgspec.json.encode(self._logprobs(piece.entries) if piece.entries else None)
            text = msgspec.json.encode(piece.text)
            event = before + text + b'},"logprobs":' + logprobs + b"," + NULL_FINISH + tail
        if piece.finish_reason is not None:
            delta = b'"index":%d,"delta":{},"logprobs":null,"finish_reason":' % choice.index
            before = self._frame.head + b"{" + token_ids_member(ids) + delta
            event += before + msgspec.json.encode(piece.finish_reason) + b"}" + tail
        return event

    def joined(self, choice: Choice, piece: Piece, usage: Usage | None, *, first: bool) -> bytes:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if first or piece.text:
            delta["content"] = piece.text
        delta |= read_delta(piece.parts)
        begin = self._frame.begin(self._extras.prompt_token_ids(choice) if first else None)
        body = self._body(choice, delta, piece, self._extras.new_token_ids(choice), piece.finish_reason)
        return begin + body + self._frame.tail(usage)

    def usage(self, usage: Usage) -> bytes:
        return self._frame.usage(usage)

    async def whole(self) -> ChatResponse:
        """The response when everything has come."""
        messages = {choice.index: Message() for choice in self._generation.choices}
        entries: dict[int, list[TokenEntry]] = {choice.index: [] for choice in self._generation.choices}

        async def collect(choice: Choice) -> None:
            async for piece in choice:
                messages[choice.index].add(piece)
                entries[choice.index].extend(piece.entries)

        await self._generation.run(collect)
        choices = [
            ChatChoice(
                choice.index,
                messages[choice.index].answer(),
                self._logprobs(entries[choice.index]) if self._width is not None else None,
                choice.finish_reason or "stop",
                or_unset(self._extras.new_token_ids(choice)),
            )
            for choice in self._generation.choices
        ]
        usage = usage_body(self._generation.usage())
        first = self._generation.choices[0]
        return ChatResponse(
            self._id,
            self._created,
            self._model,
            choices,
            usage,
            or_unset(self._extras.prompt_token_ids(first)),
            self._extras.prompt_logprobs(first),
        )

    def _body(
        self,
        choice: Choice,
        delta: dict[str, Any],
        piece: Piece,
        token_ids: list[int] | None,
        finish_reason: str | None,
    ) -> bytes:
        """Of an event's choice."""
        logprobs = self._logprobs(piece.entries) if piece.entries else None
        body = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return msgspec.json.encode(body if token_ids is None else {**body, "token_ids": token_ids})

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChatLogprobs:
        return chat_logprobs(entries, self._width or 0, self._extras.vocabulary)
