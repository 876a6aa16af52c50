"""POST /v1/messages and /v1/messages/count_tokens. What comes out is in message.py and writer.py."""

import msgspec
from msgspec import structs
from starlette.types import Receive, Scope, Send

from protocol.errors import InvalidRequest
from protocol.messages import EngineFacts

from ..openai.fields import GenerationFields, make_wish
from ..openai.headers import Terms
from ..openai.messages import ChatMessage, last_text
from ..openai.parse import parse, read_body
from ..openai.prompting import check_not_empty, encode_chat
from ..openai.refused import Refusals
from ..openai.turn import ChatOptions, Turn, TurnEndpoint
from ..outbox import Outbox
from ..reading import plan_reading
from ..responses import send_json
from ..service import Service
from ..streams import Generation, Prompt
from ..tools import ToolUse
from .content import chat_messages
from .message import TokenCount
from .request import MESSAGES, PROMPT, CountFields, MessagesRequest
from .tools import offered_tools
from .writer import MessageWriter


class Messages(TurnEndpoint[MessagesRequest]):
    """The endpoint that answers."""

    numbered = False
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, service: Service) -> None:
        super().__init__(service, MessagesRequest, MESSAGES)

    async def plan(self, request: MessagesRequest, facts: EngineFacts, terms: Terms) -> Turn:
        if not request.model:
            raise InvalidRequest("model: required, but empty or missing", param="model")
        model = self.service.model_name(request.model)
        offered = offered_tools(request.tools, request.tool_choice)
        chat = chat_messages(request.system, request.messages)
        prompt = await _prompt(self.service, request, chat, offered.use, facts)
        budget = request.thinking_budget
        if budget is not None and budget.num_tokens >= request.max_tokens:
            what = f"{budget.param}: expected less than max_tokens, got {budget.num_tokens}"
            raise InvalidRequest(what, param=budget.param)
        room = facts.max_model_len - len(prompt.token_ids)
        fields = GenerationFields(
            model=model,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences,
            seed=request.seed,
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        wish = make_wish(
            fields,
            [prompt],
            facts,
            self.service,
            prompt_field="messages",
            terms=terms,
            max_tokens=min(request.max_tokens, room) if room > 0 else None,
            default_max_tokens=0,
            logprobs=None,
        )
        reading = plan_reading(
            self.service.formats,
            offered.use,
            prompt.text or "",
            terms.response_id,
            show_reasoning=request.shows_thinking,
            going_on=last_text(chat) if request.goes_on else None,
            budget=request.thinking_budget,
        )
        wish = await self.constrained(structs.replace(wish, reading=reading), request.constraint, facts)

        def begin(generation: Generation, outbox: Outbox) -> MessageWriter:
            clipped = request.max_tokens > room
            message_id = f"msg_{terms.response_id}"
            return MessageWriter(message_id, model, offered.skipped, generation, outbox, clipped=clipped)

        return Turn(prompt, wish, begin)


class CountTokens:
    """The endpoint that only counts. It needs no engine core."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(CountFields)
        self._refusals = Refusals(PROMPT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        request = parse(self._decoder, body)
        self._refusals.check(body)
        self._service.model_name(request.model)
        use = offered_tools(request.tools, request.tool_choice).use
        chat = chat_messages(request.system, request.messages)
        prompt = await _prompt(self._service, request, chat, use, None)
        await send_json(send, TokenCount(len(prompt.token_ids)))


async def _prompt(
    service: Service, request: CountFields, chat: list[ChatMessage], use: ToolUse, facts: EngineFacts | None
) -> Prompt:
    """The same for both endpoints: a count is exact. Raises InvalidRequest."""
    options = ChatOptions(
        chat_template_kwargs=request.chat_template_kwargs, continue_final_message=request.goes_on
    )
    prompt = await encode_chat(
        service, chat, options, facts, tools=use.shown, defaults=request.template_variables
    )
    check_not_empty([prompt], "messages")
    return prompt
