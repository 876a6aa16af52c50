"""POST /v1/chat/completions: messages in. What comes out is in chat_events.py."""

from typing import Any

from protocol.errors import InvalidRequest
from protocol.messages import EngineFacts

from ..service import Service
from ..streams import Generation, Prompt, Wish
from .chat_events import ChatEvents
from .endpoint import GeneratingEndpoint
from .extras import Extras
from .fields import GenerationFields, NumLogprobs, make_wish
from .headers import Terms
from .messages import Messages
from .prompting import check_not_empty, encode_chat, truncated
from .refused import CHAT


class ChatRequest(GenerationFields, frozen=True, kw_only=True):
    messages: Messages
    max_completion_tokens: int | None = None
    """The newer name of max_tokens; wins over it."""
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatCompletions(GeneratingEndpoint[ChatRequest]):
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, ChatRequest, CHAT)

    async def plan(self, request: ChatRequest, facts: EngineFacts, terms: Terms) -> tuple[list[Prompt], Wish]:
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequest("top_logprobs: only allowed with logprobs: true", param="top_logprobs")
        prompt = await encode_chat(self.service, request.messages, request, facts)
        check_not_empty([prompt], "messages")
        answer = request.max_completion_tokens or request.max_tokens
        (prompt,) = truncated([prompt], request, facts, answer)
        return [prompt], self._wish(request, prompt, facts, terms)

    def respond(
        self, request: ChatRequest, generation: Generation, model: str, response_id: str
    ) -> ChatEvents:
        width = (request.top_logprobs or 0) if request.logprobs else None
        extras = Extras.of(request, self.service.tokenizer)
        return ChatEvents(self.service, generation, model, response_id, width, extras)

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
