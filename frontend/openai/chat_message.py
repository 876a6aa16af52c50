"""An assistant's message as /v1/chat/completions has it, and what the parts of an answer add to it."""

from collections.abc import Iterable
from typing import Any, assert_never

from msgspec import UNSET, Struct, UnsetType

from ..answer import Piece
from ..parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallStart


class CalledFunction(Struct, frozen=True):
    name: str
    arguments: str
    """JSON text."""


class AnswerToolCall(Struct, frozen=True):
    id: str
    function: CalledFunction
    type: str = "function"


class AnswerMessage(Struct, frozen=True):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


class Message:
    """Collects one whole answer."""

    def __init__(self) -> None:
        self._content = ""
        self._reasoning = ""
        self._calls: list[dict[str, Any]] = []

    def add(self, piece: Piece) -> None:
        """The next piece."""
        delta = read_delta(piece.parts)
        self._content += piece.text + delta.get("content", "")
        self._reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                self._calls.append(call)
            else:
                self._calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]

    def answer(self) -> AnswerMessage:
        calls = [AnswerToolCall(one["id"], CalledFunction(**one["function"])) for one in self._calls]
        return AnswerMessage(
            self._content if self._content or not calls else None,
            reasoning_content=self._reasoning or UNSET,
            tool_calls=calls or UNSET,
        )


def read_delta(parts: Iterable[Part]) -> dict[str, Any]:
    """What some parts add to a message: one item of each call, which has id and name if it begins here."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        match part:
            case TextPart(text=text):
                delta["content"] = delta.get("content", "") + text
            case ReasoningPart(text=text):
                delta["reasoning_content"] = delta.get("reasoning_content", "") + text
            case ToolCallStart(index=index, id=call_id, name=name):
                function = {"name": name, "arguments": ""}
                calls[index] = {"index": index, "id": call_id, "type": "function", "function": function}
            case ToolCallArguments(index=index, text=text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
            case _:
                assert_never(part)
    return {**delta, "tool_calls": list(calls.values())} if calls else delta
