"""Server-sent events of a generation: one response body, many `data:` lines. Knows no endpoint's shapes.

Everything of an event but its text is built once per choice, as bytes; per token only the text is
escaped and put between. What has come meanwhile goes out as one event, and the last text, the finish
event, the usage and [DONE] as one write. The response starts with the first token, so that a request
which the engine core refuses gets its status, not a broken stream.
"""

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec
from starlette.types import Send

from ..answer import Piece
from ..responses import EVENT_STREAM_HEADERS
from ..streams import Choice, Generation, Usage
from .usage import usage_body

DONE = b"data: [DONE]\n\n"
NULL_FINISH = b'"finish_reason":null}'

_encode = msgspec.json.Encoder().encode


def token_ids_member(token_ids: Sequence[int] | None, name: str = "token_ids") -> bytes:
    """A member of a choice, before its others; nothing for None."""
    return b"" if token_ids is None else b'"%b":%b,' % (name.encode(), _encode(token_ids))


class Events(Protocol):
    """An endpoint's events, as bytes that end with an empty line."""

    @property
    def plain(self) -> bool:
        """Whether a piece that is only text may be written with `around`."""

    def opening(self, choice: Choice, usage: Usage | None) -> bytes:
        """Before the first piece of a choice; may be empty."""
        ...

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        """What stands before and behind the JSON string of a piece that is only text."""
        ...

    def full(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        """A piece with log-probabilities, with the usage so far, or with the end of its choice."""
        ...

    def joined(self, choice: Choice, piece: Piece, usage: Usage | None, *, first: bool) -> bytes:
        """All of a piece as exactly one event, with the opening of its choice if it is the first."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The last event when the usage was asked for."""
        ...


class ChunkFrame:
    """What the events of one response have in common; an endpoint puts a choice between."""

    def __init__(self, response_id: str, kind: str, created: int, model: str) -> None:
        """`kind` is the `object` of every chunk."""
        head = {"id": response_id, "object": kind, "created": created, "model": model}
        self.head = b"data: " + _encode(head)[:-1] + b',"choices":['

    def begin(self, prompt_token_ids: Sequence[int] | None) -> bytes:
        """`head`, with ids of the prompt if there are any to tell."""
        if prompt_token_ids is None:
            return self.head
        return b'data: {"prompt_token_ids":' + _encode(prompt_token_ids) + b"," + self.head[len(b"data: {") :]

    def tail(self, usage: Usage | None) -> bytes:
        """Behind the choices."""
        return b"]}\n\n" if usage is None else b'],"usage":' + _encode(usage_body(usage)) + b"}\n\n"

    def usage(self, usage: Usage) -> bytes:
        """The event without choices."""
        return self.head + self.tail(usage)


class Sender:
    """What both kinds of stream know: where the events go, whether the response has begun, how it ends."""

    def __init__(
        self,
        send: Send,
        generation: Generation,
        events: Events,
        *,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        self._send = send
        self._generation = generation
        self._events = events
        self._include_usage = include_usage
        self._continuous = continuous_usage
        self._started = False

    async def start(self) -> None:
        """Status and headers; once."""
        if not self._started:
            self._started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS]}
            )

    def usage_so_far(self) -> Usage | None:
        """For an event, if every event is to have it."""
        return self._generation.usage() if self._continuous else None

    def usage_event(self) -> bytes:
        """The last event but [DONE]; empty if it was not asked for."""
        return self._events.usage(self._generation.usage()) if self._include_usage else b""


class EventStream(Sender):
    """Sends a generation's events as they come."""

    def run(self) -> Awaitable[None]:
        """Raises what the choices raise; then the stream is left without its end."""
        self._unfinished = len(self._generation.choices)
        return self._generation.run(self._write)

    async def _write(self, choice: Choice) -> None:
        send, plain = self._send, self._events.plain and not self._continuous
        opened = False
        before, behind = self._events.around(choice)
        async for piece in choice:
            if plain and piece.finish_reason is None and not piece.entries:
                event = before + _encode(piece.text) + behind
            else:
                event = self._full(choice, piece)
            if not opened:
                opened = True  # a prompt is scored only by now
                event = self._events.opening(choice, self.usage_so_far()) + event
                await self.start()
            await send({"type": "http.response.body", "body": event, "more_body": self._unfinished > 0})

    def _full(self, choice: Choice, piece: Piece) -> bytes:
        event = self._events.full(choice, piece, self.usage_so_far())
        if piece.finish_reason is not None:
            self._unfinished -= 1
            if not self._unfinished:
                event += self.usage_event() + DONE
        return event
