"""The fields of POST /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_TOKENS

from ..grammars import Constraint
from ..openai.fields import MAX_STOPS, StopString
from ..openai.messages import MOST_MESSAGES
from ..openai.prompting import reasoning_variables
from ..openai.refused import Refusal
from ..openai.structured import NULL, text_of
from ..openai.turn import TurnFields, acceptances, refusals
from ..reading import Budget
from .content import AnthropicMessage, SystemBlock
from .tools import AnthropicTool, AnthropicToolChoice


class OutputFormat(Struct, frozen=True, kw_only=True, rename={"json_schema": "schema"}):
    type: Literal["json_schema"]
    json_schema: Raw = field(default_factory=lambda: NULL)


class OutputConfig(Struct, frozen=True, kw_only=True):
    format: OutputFormat | None = None
    effort: str | None = None
    """`reasoning_effort` for the chat template, where it knows that."""


class Thinking(Struct, frozen=True, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """Where the thinking is cut, and the answer goes on."""
    display: Literal["summarized", "omitted"] | None = None


class CountFields(TurnFields, frozen=True, kw_only=True):
    """What a prompt is made of."""

    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=MOST_MESSAGES)]
    system: str | list[SystemBlock] | None = None
    tools: list[AnthropicTool] | None = None
    """Kinds that only Anthropic's models know are skipped, as `skipped_tools` in the message says."""
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def template_variables(self) -> dict[str, Any]:
        """As templates of models that reason know them; where nothing is said, theirs are the defaults."""
        variables = reasoning_variables(self.output_config.effort if self.output_config is not None else None)
        if self.thinking is not None:
            wanted = self.thinking.type != "disabled"
            variables |= {"enable_thinking": wanted, "thinking": wanted}
        return variables

    @property
    def shows_thinking(self) -> bool:
        """What the model says to itself is of interest."""
        given = self.thinking
        return given is None or (given.type != "disabled" and given.display != "omitted")

    @property
    def thinking_budget(self) -> Budget | None:
        given = self.thinking
        if given is None or given.type == "disabled" or given.budget_tokens is None:
            return None
        return Budget(given.budget_tokens, "thinking.budget_tokens")

    @property
    def goes_on(self) -> bool:
        """The answer continues the last message."""
        return self.messages[-1].role == "assistant"

    @property
    def constraint(self) -> Constraint | None:
        """What the text has to follow. Raises InvalidRequest."""
        given = self.output_config.format if self.output_config is not None else None
        if given is None:
            return None
        param = "output_config.format.schema"
        if given.json_schema == NULL:
            raise InvalidRequest(f"{param}: required, but missing", param=param)
        return Constraint(param, "json_schema", text_of(given.json_schema, param))


class MessagesRequest(CountFields, frozen=True, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    """What does not fit the context ends with stop_reason model_context_window_exceeded."""
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None


_FORMAT = Refusal("use `output_config.format`")

_KEEP_ALL: tuple[Any, ...] = (
    {},
    {"edits": []},
    {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
)
"""What agents send that asks for nothing."""

PROMPT: dict[str, Refusal] = {
    "container": Refusal("this server runs no code"),
    "mcp_servers": Refusal("this server calls no other", ([],)),
    "context_management": Refusal("nothing is cut silently here; leave out old messages", _KEEP_ALL),
}

MESSAGES: dict[str, Refusal] = (
    refusals(MessagesRequest)
    | PROMPT
    | {
        "max_completion_tokens": Refusal("use `max_tokens`"),
        "thinking_token_budget": Refusal("use `thinking.budget_tokens`"),
        "stop": Refusal("use `stop_sequences`", ([], "")),
        "repetition_penalty": Refusal("it is none of this API's; use /v1/chat/completions", (1,)),
        "response_format": _FORMAT,
        "output_format": _FORMAT,
        "structured_outputs": _FORMAT,
        "guided_json": _FORMAT,
        "guided_regex": _FORMAT,
        "guided_choice": _FORMAT,
        "guided_grammar": _FORMAT,
        "functions": Refusal("use `tools`", ([],)),
        "function_call": Refusal("use `tool_choice`", ("none", "auto")),
    }
)

ACCEPTED: dict[str, str] = acceptances(MessagesRequest, MESSAGES) | {
    "metadata": "it holds a label of the caller's",
    "cache_control": "prefixes are cached anyway",
    "diagnostics": "see `usage` for what was found in the prefix cache",
    "inference_geo": "there is one place",
    "speed": "there is one",
    "user_profile_id": "a label of the caller's; keys are the tenants here",
}

_ANSWER = "it concerns the answer, not the prompt"

COUNT_ACCEPTED: dict[str, str] = {
    "stream": "a count comes whole",
    "max_tokens": _ANSWER,
    "stop_sequences": _ANSWER,
    "temperature": _ANSWER,
    "tool_choice.name": _ANSWER,
    "tool_choice.disable_parallel_tool_use": _ANSWER,
    "tools[].strict": _ANSWER,
    "thinking.budget_tokens": _ANSWER,
    "thinking.display": _ANSWER,
    "output_config.format": _ANSWER,
    "output_config.format.type": _ANSWER,
    "output_config.format.schema": _ANSWER,
    "metadata": "it holds a label of the caller's",
    "cache_control": "prefixes are cached anyway",
}
"""Of /v1/messages/count_tokens."""
