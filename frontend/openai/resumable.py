"""Server-sent events that a client can take up again where its connection broke. Knows no endpoint's shapes.

    id: 17          output tokens that this event and those before it are made of; with several choices those
    data: {…}       of each, "17.9.0": what a client sends back as Last-Event-ID

Every piece is exactly one event, and its id is fixed when it is written: an id never claims what has not
been sent. Costs a few microseconds an event more than EventStream, for requests with a key only.
"""

import asyncio

from ..streams import Choice
from .events import DONE, Sender


class ResumableStream(Sender):
    """Sends what a generation has beyond what the client has."""

    async def run(self) -> None:
        """Raises what the choices raise; then the stream is left without its end."""
        await self._generation.skip()
        self._writing = asyncio.Lock()
        self._positions = [choice.position for choice in self._generation.choices]
        await self._generation.run(self._write)
        usage = self.usage_event()
        await self._emit((self._id() + usage if usage else b"") + DONE, more=False)

    async def _write(self, choice: Choice) -> None:
        async for piece in choice:
            position = choice.position
            async with self._writing:
                first = not self._positions[choice.index]
                self._positions[choice.index] = position
                event = self._events.joined(choice, piece, self.usage_so_far(), first=first)
                await self._emit(self._id() + event, more=True)

    def _id(self) -> bytes:
        return b"id: " + ".".join(map(str, self._positions)).encode() + b"\n"

    async def _emit(self, event: bytes, *, more: bool) -> None:
        await self.start()
        await self._send({"type": "http.response.body", "body": event, "more_body": more})
