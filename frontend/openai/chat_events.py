"""What /v1/chat/completions answers: an assistant's message, whole or as a stream of deltas."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from ..answer import Piece, TokenEntry
from ..service import Service
from ..streams import Choice, Generation, Usage
from .events import NULL_FINISH, ChunkFrame
from .logprobs import ChatLogprobs, chat_logprobs
from .usage import UsageBody, usage_body


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


class ChatEvents:
    """One response's id and shapes."""

    def __init__(
        self, service: Service, generation: Generation, model: str, response_id: str, width: int | None
    ) -> None:
        """`width`: likeliest tokens beside the chosen one in log-probabilities; None: none are wanted."""
        self._service = service
        self._generation = generation
        self._width = width
        self._id = f"chatcmpl-{response_id}"
        self._created = service.now()
        self._model = model
        self._frame = ChunkFrame(self._id, "chat.completion.chunk", self._created, model)

    def opening(self, choice: Choice) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,' % choice.index
        return self._frame.head + delta + NULL_FINISH + self._frame.tail(None)

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        before = self._frame.head + b'{"index":%d,"delta":{"content":' % choice.index
        return before, b'},"logprobs":null,' + NULL_FINISH + self._frame.tail(None)

    def full(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        event, tail = b"", self._frame.tail(usage)
        if piece.text or piece.entries:
            before, _ = self.around(choice)
            logprobs = msgspec.json.encode(self._logprobs(piece.entries) if piece.entries else None)
            text = msgspec.json.encode(piece.text)
            event = before + text + b'},"logprobs":' + logprobs + b"," + NULL_FINISH + tail
        if piece.finish_reason is not None:
            delta = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":' % choice.index
            event += self._frame.head + delta + msgspec.json.encode(piece.finish_reason) + b"}" + tail
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
        return self._frame.head + msgspec.json.encode(body) + self._frame.tail(usage)

    def usage(self, usage: Usage) -> bytes:
        return self._frame.usage(usage)

    async def whole(self) -> ChatResponse:
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
                self._logprobs(entries[choice.index]) if self._width is not None else None,
                choice.finish_reason or "stop",
            )
            for choice in self._generation.choices
        ]
        usage = usage_body(self._generation.usage())
        return ChatResponse(self._id, self._created, self._model, choices, usage)

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChatLogprobs:
        return chat_logprobs(entries, self._width or 0, self._service.tokenizer)
