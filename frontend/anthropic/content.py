"""Messages of Anthropic's API, made of content blocks, and the chat messages that they come to.

assistant   thinking, text, tool_use … ─▶ reasoning_content, content, tool_calls of one message
user        tool_result … ─▶ tool messages;  text … ─▶ a user message after them
"""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from protocol.errors import InvalidRequest, Unsupported

from ..openai.messages import ChatMessage, ContentPart, FunctionCall, ToolCall, check_num_parts

Content = str | list[ContentPart]


class ContentBlock(Struct, frozen=True, kw_only=True):
    """Any kind of block; which fields it must have depends on its type. `cache_control` and the like change
    nothing: prefixes are cached by themselves."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[ContentBlock] | None" = None
    is_error: bool | None = None


class SystemBlock(Struct, frozen=True, kw_only=True):
    """A piece of the system message."""

    type: str
    """text."""
    text: str | None = None


class AnthropicMessage(Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


def chat_messages(
    system: str | list[SystemBlock] | None, messages: list[AnthropicMessage]
) -> list[ChatMessage]:
    """Raises InvalidRequest, which names the block at fault."""
    check_num_parts([message.content for message in messages], "messages")
    chat: list[ChatMessage] = []
    if system:
        chat.append(ChatMessage("system", _text(system, "system")))
    names: dict[str, str] = {}
    last = messages[-1]
    if last.role == "assistant" and any(block.type == "tool_use" for block in _blocks(last)):
        raise InvalidRequest(
            f"messages[{len(messages) - 1}]: the last message has a tool_use, but no tool_result follows it",
            param="messages",
        )
    for i, message in enumerate(messages):
        where = f"messages[{i}].content"
        match message.role:
            case "assistant":
                chat.append(_assistant(message.content, where, names))
            case "user":
                chat += _user(message.content, where, names)
            case "system":
                chat.append(ChatMessage("system", _text(message.content, where)))
    return chat


def _assistant(content: str | list[ContentBlock], where: str, names: dict[str, str]) -> ChatMessage:
    """`names` of the tools called, by id, are added."""
    if isinstance(content, str):
        return ChatMessage("assistant", content)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for i, block in enumerate(content):
        at = f"{where}[{i}]"
        match block.type:
            case "text":
                texts.append(_required(block.text, f"{at}.text"))
            case "thinking":
                thoughts.append(_required(block.thinking, f"{at}.thinking"))
            case "redacted_thinking":
                pass  # nobody but its provider can read it
            case "tool_use":
                call_id, name = _required(block.id, f"{at}.id"), _required(block.name, f"{at}.name")
                names[call_id] = name
                calls.append(ToolCall(FunctionCall(name, block.input or {}), id=call_id, type="function"))
            case other:
                raise _unsupported(other, at, "text, thinking and tool_use")
    return ChatMessage(
        "assistant",
        _joined(texts),
        tool_calls=calls or None,
        reasoning_content="\n".join(thoughts) if thoughts else None,
    )


def _user(content: str | list[ContentBlock], where: str, names: dict[str, str]) -> list[ChatMessage]:
    if isinstance(content, str):
        return [ChatMessage("user", content)]
    results: list[ChatMessage] = []
    texts: list[str] = []
    for i, block in enumerate(content):
        at = f"{where}[{i}]"
        match block.type:
            case "text":
                texts.append(_required(block.text, f"{at}.text"))
            case "tool_result":
                call_id = _required(block.tool_use_id, f"{at}.tool_use_id")
                if call_id not in names:
                    raise InvalidRequest(
                        f"{at}.tool_use_id: there is no tool_use with id {call_id!r} before it",
                        param=f"{at}.tool_use_id",
                    )
                said = _text(block.content or "", f"{at}.content")
                text = said if isinstance(said, str) else "\n".join(part.text or "" for part in said)
                text = f"Error: {text}" if block.is_error else text
                results.append(ChatMessage("tool", text, name=names[call_id], tool_call_id=call_id))
            case other:
                raise _unsupported(other, at, "text and tool_result")
    return results if results and not texts else [*results, ChatMessage("user", _joined(texts))]


def _blocks(message: AnthropicMessage) -> list[ContentBlock]:
    return message.content if isinstance(message.content, list) else []


def _text(content: str | Sequence[ContentBlock | SystemBlock], where: str) -> Content:
    if isinstance(content, str):
        return content
    texts = []
    for i, block in enumerate(content):
        if block.type != "text":
            raise _unsupported(block.type, f"{where}[{i}]", "text")
        texts.append(_required(block.text, f"{where}[{i}].text"))
    return _joined(texts)


def _joined(texts: list[str]) -> Content:
    if len(texts) < 2:
        return "".join(texts)
    return [ContentPart("text", text) for text in texts]


def _required(value: str | None, field: str) -> str:
    if value is None:
        raise InvalidRequest(f"{field}: required, but missing", param=field)
    return value


def _unsupported(kind: str, where: str, known: str) -> Unsupported:
    return Unsupported(
        f"{where}.type: {kind!r} is not supported here; this model reads text only: {known}",
        param=f"{where}.type",
    )
