"""TurnEndpoint: an endpoint whose answer is one assistant's turn, of typed items with events of their own.

What /v1/responses and /v1/messages have in common; knows the shapes of neither. An answer that is not
streamed is written by the same writer, and nobody takes its events.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from msgspec import Struct, structs
from starlette.types import Scope, Send

from protocol.errors import TernError
from protocol.messages import EngineFacts

from ..answer import Piece
from ..grammars import Constraint
from ..keep_alive import COMMENT, KeepAlive
from ..outbox import Outbox, Position
from ..responses import EVENT_STREAM_HEADERS, LAST_WORDS, send_json
from ..streams import Generation, Prompt, Wish
from . import accepted
from .endpoint import Endpoint
from .fields import GenerationFields
from .headers import Terms
from .refused import CHAT, Refusal
from .structured import compile_constraint


class TurnFields(Struct, frozen=True, kw_only=True):
    """null and absent mean the same everywhere."""

    model: str | None = None
    stream: bool | None = None


def refusals(own: type[Struct]) -> dict[str, Refusal]:
    """For an endpoint with these fields: what no endpoint honours, and what only others do."""
    elsewhere = Refusal("there is no such field in this API; use /v1/chat/completions", _NOTHING)
    others = [*GenerationFields.__struct_fields__, *_CHAT_ONLY]
    table = CHAT | dict.fromkeys(others, elsewhere) | {"n": _ONE, "best_of": _ONE}
    table |= {name: elsewhere._replace(harmless=(True,)) for name in _ON}
    return {name: refusal for name, refusal in table.items() if name not in own.__struct_fields__}


def acceptances(own: type[Struct], refused: Mapping[str, Refusal]) -> dict[str, str]:
    """For the same endpoint: what changes no answer of any, see accepted.py."""
    plain = {name: why for name, why in accepted.GENERATION.items() if "." not in name}
    return {name: why for name, why in plain.items() if name not in {*own.__struct_fields__, *refused}}


_NOTHING: tuple[Any, ...] = (False, 0, [], {}, "")
_ON = ("skip_special_tokens", "add_generation_prompt")
"""What is done here, and nothing else."""
_ONE = Refusal("it is one answer; ask several times", (1,))
_CHAT_ONLY = (
    "logprobs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "thinking_token_budget",
)


class TurnWriter(Protocol):
    """Writes one answer's events into an outbox, and knows the whole of it in the end."""

    def write(self, piece: Piece) -> None:
        """What has come. The first call begins the turn."""
        ...

    async def end(self) -> Struct:
        """After the last piece: the last events, and the whole document."""
        ...

    def last_words(self, error: TernError, request_id: str) -> bytes:
        """The events that end a stream which cannot go on."""
        ...


class ChatOptions(Struct, frozen=True, kw_only=True):
    """How the chat template is filled; see prompting.ChatFields."""

    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None


class Turn(NamedTuple):
    """What a request comes to. `begin` makes the writer of its answer."""

    prompt: Prompt
    wish: Wish
    begin: Callable[[Generation, Outbox], TurnWriter]


Fields = TypeVar("Fields", bound=TurnFields)


class TurnEndpoint(Endpoint[Fields]):
    """What such an endpoint has to say itself is what a request comes to."""

    numbered: bool
    """Its events have a `sequence_number`."""
    ping = COMMENT
    """What an idle stream says."""

    @abstractmethod
    async def plan(self, request: Fields, facts: EngineFacts, terms: Terms) -> Turn:
        """Raises RequestError."""

    async def constrained(self, wish: Wish, answer: Constraint | None, facts: EngineFacts) -> Wish:
        """With the grammar that its calls, and its text (`answer`), have to follow, if any."""
        constraint = answer if wish.reading is None else wish.reading.constrain(answer)
        if constraint is None:
            return wish
        grammar = await compile_constraint(self.service.grammars, constraint, facts, 1)
        return structs.replace(wish, grammar=grammar)

    async def answer(
        self, request: Fields, facts: EngineFacts, terms: Terms, scope: Scope, send: Send
    ) -> None:
        known = Position.of(terms.positions, stream=bool(request.stream))
        turn = await self.plan(request, facts, structs.replace(terms, positions=None))
        outbox = Outbox(numbered=self.numbered, ids=terms.key is not None, known=known)
        with Generation(self.service, [turn.prompt], turn.wish) as generation:
            writer = turn.begin(generation, outbox)
            if request.stream:
                scope.setdefault("state", {})[LAST_WORDS] = writer.last_words
                async with KeepAlive(send, self.service.options.sse_keep_alive_interval, self.ping) as alive:
                    await _stream(alive, generation, writer, outbox)
            else:
                async for piece in generation.choices[0]:
                    writer.write(piece)
                await send_json(send, await writer.end())


async def _stream(send: Send, generation: Generation, writer: TurnWriter, outbox: Outbox) -> None:
    """The response starts with the first token: a request that the engine core refuses gets its status."""
    started = False

    async def flush(*, more: bool) -> None:
        nonlocal started
        body = outbox.take()
        if not started and (body or not more):
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS]})
        if body or not more:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async for piece in generation.choices[0]:
        writer.write(piece)
        if piece.finish_reason is None:
            await flush(more=True)
    await writer.end()
    outbox.check_reached()
    await flush(more=False)
