"""The fields of POST /v1/responses."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_TOKENS

from ...grammars import Constraint
from ..fields import Penalty
from ..messages import MOST_MESSAGES
from ..refused import Refusal
from ..structured import ANY_OBJECT, NULL, text_of
from ..turn import TurnFields, acceptances, refusals
from .items import InputItem
from .tools import ResponsesTool, ResponsesToolChoice

LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
"""The first is honoured. Of the others there is nothing here: no such calls, and reasoning in plain text."""


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TextFormat(Struct, frozen=True, kw_only=True, rename={"json_schema": "schema"}):
    """`strict` asks for what is done anyway."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Raw = field(default_factory=lambda: NULL)
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, frozen=True, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Struct, frozen=True, kw_only=True):
    effort: Effort | None = None
    """A variable of the chat template; none also sets enable_thinking and thinking to false there."""
    summary: str | None = None


class ResponsesRequest(TurnFields, frozen=True, kw_only=True):
    input: str | Annotated[list[InputItem], Meta(max_length=MOST_MESSAGES)] | None = None
    """A user's message, or items."""
    instructions: str | None = None
    """A system message before everything else; not carried over from a previous response."""
    previous_response_id: Annotated[str, Meta(max_length=128)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """auto: the oldest items go where the conversation does not fit; `dropped_items` says how many."""
    background: bool | None = None
    """It is answered at once, and computed whether or not anybody waits; GET it, or its events, by its id."""
    store: bool | None = None
    """false: it cannot be asked for, or gone on from, later."""
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Include] | None = None
    """message.output_text.logprobs is honoured; of the others there is nothing here."""
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: list[ResponsesTool] | None = None
    """Functions; kinds that only their provider can run are skipped, see `skipped_tools` there."""
    tool_choice: str | ResponsesToolChoice | None = None
    """none, auto, required, or an object that names a function or some of them."""
    parallel_tool_calls: bool | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def logprobs(self) -> int | None:
        """The likeliest tokens beside the chosen one; None: no log-probabilities are wanted."""
        wanted = self.top_logprobs or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    @property
    def constraint(self) -> Constraint | None:
        """What the text has to follow. Raises InvalidRequest."""
        given = self.text.format if self.text is not None else None
        if given is None or given.type == "text":
            return None
        if given.type == "json_object":
            return Constraint("text.format", "json_schema", ANY_OBJECT)
        param = "text.format.schema"
        if given.json_schema == NULL:
            raise InvalidRequest(f"{param}: required, but missing", param=param)
        return Constraint(param, "json_schema", text_of(given.json_schema, param))


_FORMAT = Refusal("use `text.format`")

RESPONSES: dict[str, Refusal] = refusals(ResponsesRequest) | {
    "conversation": Refusal("use `previous_response_id`, or send the items"),
    "prompt": Refusal("there are no stored prompts; send `instructions` and `input`"),
    "context_management": Refusal("nothing is compacted here; see `truncation`", ([],)),
    "messages": Refusal("send them as `input`", ([],)),
    "max_tokens": Refusal("use `max_output_tokens`"),
    "max_completion_tokens": Refusal("use `max_output_tokens`"),
    "logprobs": Refusal("use `include` with message.output_text.logprobs", (False,)),
    "response_format": _FORMAT,
    "structured_outputs": _FORMAT,
    "guided_json": _FORMAT,
    "guided_regex": _FORMAT,
    "guided_choice": _FORMAT,
    "guided_grammar": _FORMAT,
    "functions": Refusal("use `tools`", ([],)),
    "function_call": Refusal("use `tool_choice`", ("none", "auto")),
}
del RESPONSES["stream_options"]  # of which nothing here changes an answer

ACCEPTED: dict[str, str] = acceptances(ResponsesRequest, RESPONSES) | {
    "stream_options": "events are not padded",
    "max_tool_calls": "it limits tools that only their provider can run, and there are none",
    "prompt_cache_options": "prefixes are cached anyway",
    "text.verbosity": "a hint to OpenAI's own models; no template reads it",
    "text.format.name": "the schema alone says what the answer is",
    "text.format.description": "the schema alone says what the answer is",
    "text.format.strict": "it is always strict",
    "reasoning.summary": "the reasoning comes in full",
}
