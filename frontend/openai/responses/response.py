"""What /v1/responses answers: the response object, and the items that its output is made of."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ...streams import Usage
from ..logprobs import ChatTokenLogprob
from .tools import ResponsesToolChoice

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str = ""
    annotations: list[None] = []
    logprobs: list[ChatTokenLogprob] = []


class OutputMessage(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningText(Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputReasoning(Struct, frozen=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    content: list[ReasoningText]
    summary: list[None] = []
    """There is none: it comes in full."""


class OutputFunctionCall(Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    """JSON text."""


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


class OfferedTool(Struct, frozen=True, tag_field="type", tag="function"):
    """A function that the model was told of."""

    name: str
    description: str | None
    parameters: dict[str, Any]
    strict: bool


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int
    """Found in the prefix cache."""
    cache_write_tokens: int = 0
    """Writing to it costs nothing, and is not counted."""


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponseError(Struct, frozen=True):
    code: str
    message: str


class ResponseObject(Struct, frozen=True, kw_only=True):
    """Fields that were not given, and have no default, are null or absent."""

    id: str
    created_at: int
    model: str
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"] = "in_progress"
    object: Literal["response"] = "response"
    output: list[OutputItem] = []
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | UnsetType = UNSET
    completed_at: int | UnsetType = UNSET
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    """Whether it can be asked for again, and gone on from."""
    metadata: dict[str, str] = {}
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    top_logprobs: int = 0
    text: dict[str, Any] = {}
    tools: list[OfferedTool] = []
    tool_choice: str | ResponsesToolChoice = "auto"
    parallel_tool_calls: bool = True
    skipped_tools: list[str] | UnsetType = UNSET
    """Types of the tools that only their provider can run: this server does not offer them to the model."""
    reasoning: dict[str, Any] = {}
    background: bool = False
    truncation: Literal["auto", "disabled"] = "disabled"
    dropped_items: int | UnsetType = UNSET
    """So many of the oldest items did not fit the context, and the model has not seen them."""
    service_tier: Literal["default"] = "default"


def response_usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.num_prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.num_cached_tokens),
        output_tokens=usage.num_answer_tokens,
        output_tokens_details=OutputTokensDetails(usage.num_reasoning_tokens),
        total_tokens=usage.num_prompt_tokens + usage.num_answer_tokens,
    )
