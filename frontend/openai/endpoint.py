"""A request's way from body to answer. Knows no endpoint's fields or shapes.

Endpoint            admit → read → parse → refuse what is not honoured → answer
GeneratingEndpoint  plan → generate ─┬─ whole ── one JSON document
                                     └─ stream ─ server-sent events
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct, structs
from starlette.types import Receive, Scope, Send

from protocol.messages import EngineFacts
from protocol.sampling import NOT_WITH_GRAMMAR

from ..keep_alive import KeepAlive
from ..responses import send_json
from ..service import Service
from ..streams import Generation, Prompt, Wish
from .events import Events, EventStream
from .fields import GenerationFields
from .headers import Terms, read_terms
from .parse import parse, read_body
from .refused import Refusal, Refusals
from .resumable import ResumableStream
from .structured import check_room, compile_constraint, constraint_of

AnyFields = TypeVar("AnyFields", bound=Struct)
Fields = TypeVar("Fields", bound=GenerationFields)


class Response(Events, Protocol):
    """One response: its events, or all of it at once."""

    async def whole(self) -> Struct:
        """The document when everything has come."""
        ...


class Endpoint(ABC, Generic[AnyFields]):
    """What every endpoint that generates does before it knows what for."""

    def __init__(self, service: Service, fields: type[AnyFields], refused: Mapping[str, Refusal]) -> None:
        self.service = service
        self._decoder = msgspec.json.Decoder(fields)
        self._refusals = Refusals(refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = await self.service.door.admit()
        body = await read_body(receive)
        request = parse(self._decoder, body)
        self._refusals.check(body)
        terms = read_terms(scope, body, self.service.options.request_timeout)
        await self.service.door.attend(receive, self.answer(request, facts, terms, scope, send))

    @abstractmethod
    async def answer(
        self, request: AnyFields, facts: EngineFacts, terms: Terms, scope: Scope, send: Send
    ) -> None:
        """All of the response. Cancelled when the client goes away."""


class GeneratingEndpoint(Endpoint[Fields]):
    """What an endpoint of choices has to say itself: what is asked for, and how the answer is written."""

    @abstractmethod
    async def plan(self, request: Fields, facts: EngineFacts, terms: Terms) -> tuple[Sequence[Prompt], Wish]:
        """The prompts, and what is to be made of each. Raises RequestError."""

    @abstractmethod
    def respond(self, request: Fields, generation: Generation, model: str, response_id: str) -> Response:
        """How the answer is written; `model` is the name to report."""

    async def _constrain(self, request: Fields, wish: Wish, facts: EngineFacts) -> Wish:
        """With the grammar that the answers have to follow, if they have to follow any."""
        constraint = constraint_of(request)
        if wish.reading is not None:
            constraint = wish.reading.constrain(constraint)
        if constraint is None:
            return wish
        check_room(constraint, {name: getattr(request, name) for name in NOT_WITH_GRAMMAR})
        num_choices = len(wish.sampling) * wish.n
        grammar = await compile_constraint(self.service.grammars, constraint, facts, num_choices)
        return structs.replace(wish, grammar=grammar)

    async def answer(
        self, request: Fields, facts: EngineFacts, terms: Terms, scope: Scope, send: Send
    ) -> None:
        model = self.service.model_name(request.model)
        prompts, wish = await self.plan(request, facts, terms)
        wish = await self._constrain(request, wish, facts)
        with Generation(self.service, prompts, wish) as generation:
            response = self.respond(request, generation, model, terms.response_id)
            if not request.stream:
                await send_json(send, await response.whole())
                return
            stream = EventStream if terms.key is None else ResumableStream
            async with KeepAlive(send, self.service.options.sse_keep_alive_interval) as alive:
                await stream(
                    alive,
                    generation,
                    response,
                    include_usage=request.include_usage,
                    continuous_usage=request.continuous_usage,
                ).run()
