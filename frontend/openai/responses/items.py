"""Items of a conversation, as /v1/responses takes them in, and the messages that they come to.

reasoning ──┐
message ────┼─▶ one assistant message: reasoning_content, content, tool_calls
function_call ┘
function_call_output ─▶ a tool message
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, structs

from protocol.errors import InvalidRequest, Unsupported

from ..messages import ROLES, ChatMessage, ContentPart, FunctionCall, ToolCall

TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


Content = str | list[ContentPart]

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


class InputPart(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Any kind of item; which fields it must have depends on its type."""

    type: str | None = None
    """message (also when omitted), reasoning, function_call or function_call_output."""
    id: str | None = None
    role: str | None = None
    content: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class PlacedItem(NamedTuple):
    """An item, and what errors call it."""

    item: InputItem
    where: str


def identified(item: InputItem, suffix: str) -> InputItem:
    """With an id, if it has none."""
    prefix = _PREFIXES.get(item.type or "message", "item")
    return item if item.id else structs.replace(item, id=f"{prefix}_{suffix}")


def messages_of(instructions: str | None, items: Iterable[PlacedItem]) -> list[ChatMessage]:
    """Raises InvalidRequest, which names the item at fault."""
    conversation = Conversation(instructions)
    for item, where in items:
        conversation.add(item, where)
    return conversation.close()


class Conversation:
    """Chat messages, made item by item."""

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[ChatMessage] = []
        self._calls: dict[str, str] = {}
        """Names of the functions called, by call_id."""
        self._unanswered: dict[str, str] = {}
        """Where the call stands, by call_id."""
        self._reasoning: str | None = None
        self._content: Content | None = None
        self._tool_calls: list[ToolCall] = []
        if instructions:
            self.messages.append(ChatMessage("system", instructions))

    def add(self, item: InputItem, where: str) -> None:
        """Raises InvalidRequest, which names what is wrong under `where`."""
        match item.type or "message":
            case "message":
                self._message(item, where)
            case "reasoning":
                self._reason(item, where)
            case "function_call":
                self._call(item, where)
            case "function_call_output":
                self._output(item, where)
            case "item_reference":
                raise Unsupported(
                    f"{where}.type: 'item_reference' is not supported: send the item itself, or "
                    "previous_response_id",
                    param=f"{where}.type",
                )
            case other:
                raise Unsupported(
                    f"{where}.type: {other!r} is not supported; known are message, reasoning, function_call "
                    "and function_call_output",
                    param=f"{where}.type",
                )

    def close(self) -> list[ChatMessage]:
        """All messages. Raises InvalidRequest for a call without an output, which no model knows."""
        if self._unanswered:
            call_id, where = next(iter(self._unanswered.items()))
            missing = f"{where}: No tool output found for function call {call_id}"
            raise InvalidRequest(f"{missing}; send it as an item of type function_call_output", param="input")
        self._close_assistant()
        return self.messages

    def _message(self, item: InputItem, where: str) -> None:
        role = _required(item.role, f"{where}.role")
        if role not in ROLES or role == "tool":
            choices = ", ".join(one for one in ROLES if one != "tool")
            raise InvalidRequest(f"{where}.role: {role!r} is not one of {choices}", param=f"{where}.role")
        if item.content is None:
            raise InvalidRequest(f"{where}.content: required, but missing", param=f"{where}.content")
        content = _content(item.content, f"{where}.content")
        if role != "assistant":
            self._close_assistant()
            self.messages.append(ChatMessage(role, content))
            return
        if self._content is not None or self._tool_calls:
            self._close_assistant()
        self._content = content

    def _reason(self, item: InputItem, where: str) -> None:
        if self._content is not None or self._tool_calls:
            self._close_assistant()
        field = "content" if item.content else "summary"
        text = "\n".join(_texts(item.content or item.summary or [], f"{where}.{field}"))
        self._reasoning = text if self._reasoning is None else f"{self._reasoning}\n{text}"

    def _call(self, item: InputItem, where: str) -> None:
        call_id = _required(item.call_id, f"{where}.call_id")
        name = _required(item.name, f"{where}.name")
        arguments = _arguments(item.arguments, f"{where}.arguments")
        call = ToolCall(FunctionCall(name, arguments), id=call_id, type="function")
        self._calls[call_id] = name
        self._unanswered[call_id] = where
        self._tool_calls.append(call)

    def _output(self, item: InputItem, where: str) -> None:
        call_id = _required(item.call_id, f"{where}.call_id")
        if call_id not in self._calls:
            raise InvalidRequest(
                f"{where}.call_id: there is no function_call with call_id {call_id!r} before it",
                param=f"{where}.call_id",
            )
        if item.output is None:
            raise InvalidRequest(f"{where}.output: required, but missing", param=f"{where}.output")
        self._unanswered.pop(call_id, None)
        self._close_assistant()
        text = "\n".join(_texts(item.output, f"{where}.output"))
        self.messages.append(ChatMessage("tool", text, name=self._calls[call_id], tool_call_id=call_id))

    def _close_assistant(self) -> None:
        if self._content is None and not self._tool_calls and self._reasoning is None:
            return
        self.messages.append(
            ChatMessage(
                "assistant",
                self._content or "",
                tool_calls=self._tool_calls or None,
                reasoning_content=self._reasoning,
            )
        )
        self._reasoning, self._content, self._tool_calls = None, None, []


def _content(content: str | list[InputPart], where: str) -> Content:
    texts = _texts(content, where)
    return texts[0] if len(texts) == 1 else [ContentPart("text", text) for text in texts]


def _texts(content: str | list[InputPart], where: str) -> list[str]:
    """Raises InvalidRequest for what is no text."""
    if isinstance(content, str):
        return [content]
    texts = []
    for i, part in enumerate(content):
        if part.type != "refusal" and part.type not in TEXT_PARTS:
            field = f"{where}[{i}].type"
            raise Unsupported(
                f"{field}: {part.type!r} is not supported; this model reads text only", param=field
            )
        name = "refusal" if part.type == "refusal" else "text"
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            field = f"{where}[{i}].{name}"
            raise InvalidRequest(f"{field}: required, but missing", param=field)
        texts.append(text)
    return texts


def _arguments(text: str | None, field: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"{field}: expected a JSON object as text", param=field) from None


def _required(value: str | None, field: str) -> str:
    if not value:
        raise InvalidRequest(f"{field}: required, but missing", param=field)
    return value
