"""POST /v1/responses: items in, items out. Their events are in writer.py, the conversation's in items.py."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, structs
from starlette.types import Scope, Send

from protocol.errors import InvalidRequest, Unsupported
from protocol.messages import EngineFacts

from ...outbox import Outbox
from ...reading import plan_reading
from ...service import Service
from ...streams import Generation, Prompt, Wish
from ...tools import OfferedTools
from ..fields import GenerationFields, make_wish
from ..headers import Terms
from ..messages import check_num_parts
from ..prompting import check_not_empty, encode_chat, reasoning_variables
from ..turn import ChatOptions, Turn, TurnEndpoint
from .background import Background
from .items import InputItem, PlacedItem, identified, messages_of
from .order import PlannedResponse
from .past import PastResponses
from .request import RESPONSES, ResponsesRequest, TextFormat
from .response import OfferedTool, ResponseObject
from .tools import offered_tools
from .truncation import truncated
from .writer import ResponseWriter

TRUNCATED_ROOM = 8
"""One part in so many of the context."""


class Responses(TurnEndpoint[ResponsesRequest]):
    """The endpoint."""

    numbered = True

    def __init__(self, service: Service, past: PastResponses) -> None:
        super().__init__(service, ResponsesRequest, RESPONSES)
        self._past = past
        self.background = Background(service, past, self._plan)

    async def answer(
        self, request: ResponsesRequest, facts: EngineFacts, terms: Terms, scope: Scope, send: Send
    ) -> None:
        if request.background:
            await self.background.start(request, facts, terms, send)
        else:
            await super().answer(request, facts, terms, scope, send)

    async def plan(self, request: ResponsesRequest, facts: EngineFacts, terms: Terms) -> Turn:
        planned = await self._plan(request, facts, terms, self.service.now())
        return Turn(planned.prompt, planned.wish, planned.begin)

    async def _plan(
        self, request: ResponsesRequest, facts: EngineFacts, terms: Terms, created_at: int
    ) -> PlannedResponse:
        model = self.service.model_name(request.model)
        items = await self._history(request, terms)
        offered = offered_tools(request.tools, request.tool_choice, request.parallel_tool_calls)

        async def encode(placed: Sequence[PlacedItem]) -> Prompt:
            return await encode_chat(
                self.service,
                messages_of(request.instructions, placed),
                ChatOptions(chat_template_kwargs=request.chat_template_kwargs),
                facts,
                tools=offered.use.shown,
                defaults=reasoning_variables(request.reasoning.effort if request.reasoning else None),
                param="input",
            )

        if request.truncation == "auto":
            room = request.max_output_tokens or self._room(facts)
            prompt, num_dropped = await truncated(items, encode, room, facts)
        else:
            prompt, num_dropped = await encode(items), 0
        check_not_empty([prompt], "input")
        reading = plan_reading(self.service.formats, offered.use, prompt.text or "", terms.response_id)
        if reading is not None and request.logprobs is not None:
            field = "top_logprobs" if request.top_logprobs else "include"
            raise Unsupported(
                f"{field}: no log-probabilities here beside tools or reasoning; use /v1/chat/completions",
                param=field,
            )
        wish = structs.replace(self._wish(request, prompt, facts, terms), reading=reading)
        wish = await self.constrained(wish, request.constraint, facts)
        begun = structs.replace(
            _response(request, offered, model, f"resp_{terms.response_id}", wish, self.service),
            created_at=created_at,
            dropped_items=num_dropped or UNSET,
        )
        answered = [one.item for one in items]
        digest = terms.key.digest if terms.key is not None else ""

        def begin(generation: Generation, outbox: Outbox) -> ResponseWriter:
            async def keep(response: ResponseObject) -> ResponseObject:
                if not response.store:
                    return response
                kept = await self._past.keep(terms.tenant, response, answered, digest)
                return response if kept else structs.replace(response, store=False)

            return ResponseWriter(
                begun,
                terms.response_id,
                generation,
                outbox,
                keep,
                self.service.now,
                self.service.tokenizer,
                request.logprobs,
            )

        return PlannedResponse(prompt, wish, begun, answered, begin)

    async def _history(self, request: ResponsesRequest, terms: Terms) -> list[PlacedItem]:
        """All items so far, each with an id. Raises RequestError."""
        history: list[PlacedItem] = []
        if request.previous_response_id is not None:
            name = "previous_response_id"
            past = await self._past.find(terms.tenant, request.previous_response_id, name)
            history += [PlacedItem(item, name) for item in past.conversation()]
        given = request.input
        if not given and given != "":
            raise InvalidRequest("input: required, but empty or missing", param="input")
        if not isinstance(given, str):
            check_num_parts([item.content for item in given or ()], "input")
        new = [InputItem(role="user", content=given)] if isinstance(given, str) else given or []
        return history + [
            PlacedItem(identified(item, f"{terms.response_id}_in_{i}"), f"input[{i}]")
            for i, item in enumerate(new)
        ]

    def _room(self, facts: EngineFacts) -> int:
        """What a conversation that is truncated leaves to an answer of which nothing is said."""
        share = max(facts.max_model_len // TRUNCATED_ROOM, 1)
        return min(self.service.options.default_max_tokens or share, share)

    def _wish(self, request: ResponsesRequest, prompt: Prompt, facts: EngineFacts, terms: Terms) -> Wish:
        fields = GenerationFields(
            model=request.model,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        return make_wish(
            fields,
            [prompt],
            facts,
            self.service,
            prompt_field="input",
            terms=terms,
            max_tokens=request.max_output_tokens,
            default_max_tokens=self.service.options.default_max_tokens,
            logprobs=request.logprobs,
            max_tokens_field="max_output_tokens",
        )


def _response(
    request: ResponsesRequest,
    offered: OfferedTools,
    model: str,
    response_id: str,
    wish: Wish,
    service: Service,
) -> ResponseObject:
    """As it begins."""
    sampling = wish.sampling[0]
    reasoning = request.reasoning
    verbosity = request.text.verbosity if request.text is not None else None
    return ResponseObject(
        id=response_id,
        created_at=service.now(),
        model=model,
        instructions=request.instructions,
        previous_response_id=request.previous_response_id,
        store=request.store is not False and service.response_store.enabled,
        metadata=request.metadata or {},
        background=bool(request.background),
        truncation=request.truncation or "disabled",
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_output_tokens=request.max_output_tokens,
        top_logprobs=request.top_logprobs or 0,
        text={"format": _format(request.text.format if request.text is not None else None),
              "verbosity": verbosity or "medium"},
        tools=[
            OfferedTool(tool.name, tool.description, tool.parameters, tool.strict)
            for tool in offered.use.tools
        ],
        tool_choice=request.tool_choice or "auto",
        parallel_tool_calls=offered.use.parallel,
        skipped_tools=offered.skipped or UNSET,
        reasoning={"effort": reasoning.effort if reasoning else None,
                   "summary": reasoning.summary if reasoning else None},
    )  # fmt: skip


def _format(given: TextFormat | None) -> dict[str, Any]:
    if given is None or given.type != "json_schema":
        return {"type": "text" if given is None else given.type}
    return {"type": given.type, "name": given.name or "schema", "schema": given.json_schema, "strict": True}
