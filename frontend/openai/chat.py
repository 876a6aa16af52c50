"""POST /v1/chat/completions: messages in. What comes out is in chat_events.py."""

from typing import Annotated, Any, Literal

from msgspec import Meta, structs

from protocol.errors import InvalidRequest
from protocol.messages import EngineFacts
from protocol.sampling import MAX_TOKENS

from ..reading import Budget, plan_reading
from ..service import Service
from ..streams import Generation, Prompt, Wish
from .chat_events import ChatEvents
from .endpoint import GeneratingEndpoint
from .extras import Extras
from .fields import GenerationFields, NumLogprobs, make_wish
from .headers import Terms
from .messages import Messages, last_text
from .prompting import check_not_empty, encode_chat, reasoning_variables, truncated
from .refused import CHAT
from .tools import ToolChoice, ToolDefinition, tool_use


class ChatRequest(GenerationFields, frozen=True, kw_only=True):
    messages: Messages
    max_completion_tokens: int | None = None
    """The newer name of max_tokens; wins over it."""
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    """So many likeliest tokens beside each."""
    tools: list[ToolDefinition] | None = None
    tool_choice: str | ToolChoice | None = None
    """none, auto, required, or an object that names a function or some of them."""
    parallel_tool_calls: bool | None = None
    """false: one call at most."""
    thinking_token_budget: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    """Where the reasoning is cut, and the answer goes on."""
    include_reasoning: bool | None = None
    """false: the reasoning is dropped."""
    separate_reasoning: bool | None = None
    """false: the reasoning stays in the content, with its marks."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """A variable of the chat template; none also sets enable_thinking and thinking to false there."""
    add_generation_prompt: bool | None = None
    """false: the prompt does not begin the assistant's message."""
    continue_final_message: bool | None = None
    """The answer goes on with the last message."""
    add_special_tokens: bool | None = None
    """true: besides those in the chat template."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template."""


class ChatCompletions(GeneratingEndpoint[ChatRequest]):
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, ChatRequest, CHAT)

    async def plan(self, request: ChatRequest, facts: EngineFacts, terms: Terms) -> tuple[list[Prompt], Wish]:
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequest("top_logprobs: only allowed with logprobs: true", param="top_logprobs")
        use = tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
        prompt = await encode_chat(
            self.service,
            request.messages,
            request,
            facts,
            tools=use.shown,
            defaults=reasoning_variables(request.reasoning_effort),
        )
        check_not_empty([prompt], "messages")
        budget = request.thinking_token_budget
        reading = plan_reading(
            self.service.formats,
            use,
            prompt.text or "",
            terms.response_id,
            split_reasoning=request.separate_reasoning is not False,
            show_reasoning=request.include_reasoning is not False,
            going_on=last_text(request.messages) if request.continue_final_message else None,
            budget=None if budget is None else Budget(budget, "thinking_token_budget"),
        )
        answer = request.max_completion_tokens or request.max_tokens
        (prompt,) = truncated([prompt], request, facts, answer)
        return [prompt], structs.replace(self._wish(request, prompt, facts, terms), reading=reading)

    def respond(
        self, request: ChatRequest, generation: Generation, model: str, response_id: str
    ) -> ChatEvents:
        width = (request.top_logprobs or 0) if request.logprobs else None
        extras = Extras.of(request, self.service.tokenizer)
        return ChatEvents(self.service, generation, model, response_id, extras.width(width), extras)

    def _wish(self, request: ChatRequest, prompt: Prompt, facts: EngineFacts, terms: Terms) -> Wish:
        asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        if asked is not None and asked < 1:
            name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
            raise InvalidRequest(f"{name}: expected int >= 1, got {asked}", param=name)
        return make_wish(
            request,
            [prompt],
            facts,
            self.service,
            prompt_field="messages",
            terms=terms,
            max_tokens=asked,
            default_max_tokens=self.service.options.default_max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
