"""MessageWriter: one message's events in their order, and the message in the end.

message_start, ping
  content_block_start, content_block_delta …, content_block_stop      of every block
message_delta, message_stop
"""

import msgspec
from msgspec import structs

from protocol.errors import TernError

from ..answer import LENGTH, Piece
from ..openai.turn import TurnWriter
from ..outbox import Outbox
from ..streams import Generation
from .errors import AnthropicErrors
from .message import Block, MessageObject, StopReason, TextBlock, message_usage

_encode = msgspec.json.Encoder().encode


class MessageWriter(TurnWriter):
    """Of one answer."""

    def __init__(
        self, message_id: str, model: str, generation: Generation, outbox: Outbox, *, clipped: bool
    ) -> None:
        """`clipped`: the context ends before max_tokens."""
        self._id = message_id
        self._model = model
        self._generation = generation
        self._outbox = outbox
        self._clipped = clipped
        self._content: list[Block] = []
        self._text: _Text | None = None
        self._begun = False

    def write(self, piece: Piece) -> None:
        if not self._begun:
            self._begun = True
            self._mark("message_start", {"message": self._message()})
            self._mark("ping", {})
        if piece.text:
            if self._text is None:
                self._text = _Text(len(self._content), self._outbox)
            self._text.write(piece.text)

    async def end(self) -> MessageObject:
        self._close()
        reason, sequence = self._stop()
        usage = message_usage(self._generation.usage())
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._mark("message_delta", {"delta": delta, "usage": usage})
        self._mark("message_stop", {})
        return structs.replace(self._message(), stop_reason=reason, stop_sequence=sequence)

    def last_words(self, error: TernError) -> bytes:
        return self._outbox.take() + AnthropicErrors().last_event(error, "")

    def _message(self) -> MessageObject:
        usage = message_usage(self._generation.usage())
        return MessageObject(id=self._id, model=self._model, content=self._content, usage=usage)

    def _stop(self) -> tuple[StopReason, str | None]:
        choice = self._generation.choices[0]
        if choice.stop_string is not None:
            return "stop_sequence", choice.stop_string
        if choice.finish_reason == LENGTH:
            return "model_context_window_exceeded" if self._clipped else "max_tokens", None
        return "end_turn", None

    def _close(self) -> None:
        if self._text is not None:
            self._content.append(self._text.close())
            self._text = None

    def _mark(self, name: str, fields: dict[str, object]) -> None:
        self._outbox.mark(name, _encode({"type": name, **fields}))


class _Text:
    """A block that is being written."""

    def __init__(self, index: int, outbox: Outbox) -> None:
        self._index = index
        self._outbox = outbox
        self._texts: list[str] = []
        self._before = (
            b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":' % index
        )
        start = {"type": "content_block_start", "index": index, "content_block": TextBlock("")}
        outbox.mark("content_block_start", _encode(start))

    def write(self, text: str) -> None:
        """Hot path."""
        self._texts.append(text)
        text, _ = self._outbox.unknown(text)
        if text:
            self._outbox.delta(b"content_block_delta", self._before + _encode(text) + b"}}")

    def close(self) -> TextBlock:
        stop = {"type": "content_block_stop", "index": self._index}
        self._outbox.mark("content_block_stop", _encode(stop))
        return TextBlock("".join(self._texts))
