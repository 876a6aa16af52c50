"""Chat messages as clients send them, and as chat templates read them."""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from protocol.errors import InvalidRequest, Unsupported

from ..chat_template import Message

MOST_MESSAGES = 1 << 13
"""Of a conversation, and parts of all its messages together: each takes the event loop some µs."""
ROLES = ("system", "developer", "user", "assistant", "tool")


class ContentPart(Struct, frozen=True):
    type: Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]
    text: str | None = None


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] | None = None
    """JSON text; templates get the object."""


class ToolCall(Struct, frozen=True):
    function: FunctionCall
    id: str | None = None
    type: str | None = None


class ChatMessage(Struct, frozen=True):
    role: Annotated[str, Meta(extra_json_schema={"enum": list(ROLES)})]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Another name of reasoning_content."""


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=MOST_MESSAGES)]


def check_num_parts(contents: Iterable[object], param: str) -> None:
    """`contents` of all messages: texts, or lists of parts. Raises InvalidRequest."""
    count = sum([len(content) for content in contents if isinstance(content, list)])
    if count > MOST_MESSAGES:
        raise InvalidRequest(f"{param}: {count} parts; at most {MOST_MESSAGES} in all", param=param)


def num_chars(messages: list[ChatMessage]) -> int:
    """Characters of content, which is about the length of the rendered prompt."""
    texts = [message.content for message in messages if isinstance(message.content, str)]
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    return sum(map(len, texts)) + sum(len(part.text or "") for part in parts)


def num_extra_chars(messages: list[ChatMessage]) -> int:
    """Characters of all else that a template may look at, and most show only in part."""
    size = 0
    for message in messages:
        size += len(message.name or "") + len(message.tool_call_id or "")
        size += len(message.reasoning_content or message.reasoning or "")
        if message.tool_calls:
            size += len(msgspec.json.encode(message.tool_calls))
    return size


def last_text(messages: list[ChatMessage]) -> str:
    """Of the last message; of its parts the last."""
    content = messages[-1].content
    if isinstance(content, list):
        content = content[-1].text if content else None
    return content or ""


def template_messages(messages: list[ChatMessage]) -> list[Message]:
    """Plain JSON data for the chat template. Raises InvalidRequest naming the message at fault."""
    plain = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    names = {call.id: call.function.name for one in messages for call in one.tool_calls or () if call.id}
    for message in plain:
        if message["role"] == "tool" and "name" not in message and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]  # which some templates show
    return plain


def _message(message: ChatMessage, where: str) -> Message:
    if message.role not in ROLES:
        choices = ", ".join(ROLES)
        raise InvalidRequest(f"{where}.role: {message.role!r} is not one of {choices}", param=f"{where}.role")
    plain: Message = {"role": message.role, "content": _content(message, where)}
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    extra = {"name": message.name, "tool_call_id": message.tool_call_id, "reasoning_content": reasoning}
    plain |= {name: value for name, value in extra.items() if value is not None}
    if message.tool_calls:
        plain["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    return plain


def _content(message: ChatMessage, where: str) -> str | list[dict[str, str]]:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    for i, part in enumerate(message.content):
        if part.type != "text":
            field = f"{where}.content[{i}].type"
            raise Unsupported(
                f"{field}: {part.type!r} is not supported; this model reads text only", param=field
            )
        if part.text is None:
            field = f"{where}.content[{i}].text"
            raise InvalidRequest(f"{field}: required, but missing", param=field)
    return [{"type": "text", "text": part.text or ""} for part in message.content]


def _tool_call(call: ToolCall, where: str) -> dict[str, Any]:
    arguments: Any = call.function.arguments or {}
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            field = f"{where}.function.arguments"
            raise InvalidRequest(f"{field}: expected a JSON object as text", param=field) from None
    plain = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return {"id": call.id, **plain} if call.id is not None else plain
