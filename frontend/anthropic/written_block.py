"""WrittenBlock: a content block while it is written: its events, and what it is in the end."""

from typing import Any

import msgspec

from ..outbox import Outbox
from .message import Block, TextBlock, ThinkingBlock, ToolUseBlock

_encode = msgspec.json.Encoder().encode


class WrittenBlock:
    """Begun when it is made."""

    def __init__(self, empty: Block, index: int, outbox: Outbox) -> None:
        self._empty = empty
        self._index = index
        self._outbox = outbox
        self._texts: list[str] = []
        kind, field = _DELTAS[type(empty)]
        head = {"type": "content_block_delta", "index": index}
        self._before = b'%b,"delta":{"type":"%b","%b":' % (_encode(head)[:-1], kind, field)
        self._mark("content_block_start", {"index": index, "content_block": empty})

    def write(self, text: str) -> None:
        """Hot path."""
        self._texts.append(text)
        text, _ = self._outbox.unknown(text)
        if text:
            self._outbox.delta(b"content_block_delta", self._before + _encode(text) + b"}}")

    def close(self) -> Block:
        self._mark("content_block_stop", {"index": self._index})
        text = "".join(self._texts)
        match self._empty:
            case TextBlock():
                return TextBlock(text)
            case ThinkingBlock():
                return ThinkingBlock(text)
            case ToolUseBlock(id=call_id, name=name):
                return ToolUseBlock(call_id, name, _input(text))

    def _mark(self, name: str, fields: dict[str, object]) -> None:
        self._outbox.mark(name, _encode({"type": name, **fields}))


_DELTAS: dict[type, tuple[bytes, bytes]] = {
    TextBlock: (b"text_delta", b"text"),
    ThinkingBlock: (b"thinking_delta", b"thinking"),
    ToolUseBlock: (b"input_json_delta", b"partial_json"),
}
"""The type of a block's deltas, and the field of theirs that has the text."""


def _input(text: str) -> dict[str, Any]:
    """Of a call; empty where the answer ended within it: its stop_reason is then not tool_use."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
