"""MessageWriter: one message's events in their order, and the message in the end.

message_start, ping
  content_block_start, content_block_delta …, content_block_stop      of every block
message_delta, message_stop
"""

from typing import assert_never

import msgspec
from msgspec import UNSET, structs

from protocol.errors import TernError

from ..answer import LENGTH, TOOL_CALLS, Piece
from ..outbox import Outbox
from ..parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallStart
from ..streams import Generation
from .errors import AnthropicErrors
from .message import Block, MessageObject, StopReason, TextBlock, ThinkingBlock, ToolUseBlock, message_usage
from .written_block import WrittenBlock

_encode = msgspec.json.Encoder().encode


class MessageWriter:
    """A TurnWriter."""

    def __init__(
        self,
        message_id: str,
        model: str,
        skipped_tools: list[str],
        generation: Generation,
        outbox: Outbox,
        *,
        clipped: bool,
    ) -> None:
        """`clipped`: the context ends before max_tokens."""
        self._message = MessageObject(
            id=message_id,
            model=model,
            content=[],
            usage=message_usage(generation.usage()),
            skipped_tools=skipped_tools or UNSET,
        )
        self._generation = generation
        self._outbox = outbox
        self._clipped = clipped
        self._content: list[Block] = []
        self._begun = False
        self._open: WrittenBlock | None = None
        self._kind: type[Block] | None = None
        """Of the open block."""

    def write(self, piece: Piece) -> None:
        if not self._begun:
            self._begun = True
            message = structs.replace(self._message, usage=message_usage(self._generation.usage()))
            self._mark("message_start", {"message": message})
            self._mark("ping", {})
        if piece.text:
            self._block(TextBlock("")).write(piece.text)
        for part in piece.parts:
            self._add(part)

    async def end(self) -> MessageObject:
        self._close()
        reason, sequence = self._stop()
        usage = message_usage(self._generation.usage())
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._mark("message_delta", {"delta": delta, "usage": usage})
        self._mark("message_stop", {})
        return structs.replace(
            self._message, content=self._content, usage=usage, stop_reason=reason, stop_sequence=sequence
        )

    def last_words(self, error: TernError, request_id: str) -> bytes:
        return self._outbox.take() + AnthropicErrors().last_event(error, request_id)

    def _add(self, part: Part) -> None:
        match part:
            case TextPart(text=text):
                self._block(TextBlock("")).write(text)
            case ReasoningPart(text=text):
                self._block(ThinkingBlock("")).write(text)
            case ToolCallStart(id=call_id, name=name):
                self._close()
                self._block(ToolUseBlock(call_id, name, {}))
            case ToolCallArguments(text=text):
                assert self._open is not None, "arguments follow the start of their call"
                self._open.write(text)
            case _:
                assert_never(part)

    def _stop(self) -> tuple[StopReason, str | None]:
        choice = self._generation.choices[0]
        if choice.stop_string is not None:
            return "stop_sequence", choice.stop_string
        if choice.finish_reason == LENGTH:
            return "model_context_window_exceeded" if self._clipped else "max_tokens", None
        return "tool_use" if choice.finish_reason == TOOL_CALLS else "end_turn", None

    def _block(self, empty: Block) -> WrittenBlock:
        """The open one if it is of this kind, or a new one."""
        if self._open is None or self._kind is not type(empty):
            self._close()
            self._open, self._kind = WrittenBlock(empty, len(self._content), self._outbox), type(empty)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._content.append(self._open.close())
            self._open = None

    def _mark(self, name: str, fields: dict[str, object]) -> None:
        self._outbox.mark(name, _encode({"type": name, **fields}))
