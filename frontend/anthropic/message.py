"""What /v1/messages answers: a message of content blocks."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ..streams import Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Struct, frozen=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""
    """Nobody checks whether it comes back as it was."""


class ToolUseBlock(Struct, frozen=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class OutputDetails(Struct, frozen=True):
    thinking_tokens: int


class MessageUsage(Struct, frozen=True):
    """The prompt has input_tokens plus cache_read_input_tokens."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    """Found in the prefix cache."""
    output_tokens_details: OutputDetails
    cache_creation_input_tokens: int = 0
    """Writing to it costs nothing, and is not counted."""


class MessageObject(Struct, frozen=True, kw_only=True):
    id: str
    model: str
    content: list[Block]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    """The one that ended it."""
    skipped_tools: list[str] | UnsetType = UNSET
    """Types of the tools that are known to Anthropic's models only, and that this one was not told of."""
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class TokenCount(Struct, frozen=True):
    input_tokens: int


def message_usage(usage: Usage) -> MessageUsage:
    return MessageUsage(
        input_tokens=usage.num_prompt_tokens - usage.num_cached_tokens,
        output_tokens=usage.num_answer_tokens,
        cache_read_input_tokens=usage.num_cached_tokens,
        output_tokens_details=OutputDetails(usage.num_reasoning_tokens),
    )
