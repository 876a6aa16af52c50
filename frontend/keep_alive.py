"""KeepAlive: a stream that has nothing to say says so from time to time; proxies cut what looks dead.

Until the first ping a response has not begun, so that a request which is refused gets its status; what goes
wrong after that is told by the stream's last event. Knows no shapes.
"""

import asyncio
from typing import Self

from starlette.types import Message, Send

from .responses import EVENT_STREAM_HEADERS

COMMENT = b": keep-alive\n\n"
"""Which every reader of events skips."""


class KeepAlive:
    """A `send` around another, within `async with`."""

    def __init__(self, send: Send, interval_s: float, ping: bytes = COMMENT) -> None:
        """`interval_s` of 0: never. `ping`: an event that says nothing."""
        self._send = send
        self._interval_s = interval_s
        self._ping = ping
        self._started = False
        self._num_sent = 0
        self._num_seen = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None

    async def __call__(self, message: Message) -> None:
        """Hot path."""
        self._num_sent += 1
        if message["type"] == "http.response.start":
            if self._started:
                return  # a ping was first
            self._started = True
        elif not message.get("more_body", False):
            self._stop()
        await self._send(message)

    async def __aenter__(self) -> Self:
        if self._interval_s:
            self._wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._pinging is not None:
            self._pinging.cancel()

    def _wait(self) -> None:
        self._num_seen = self._num_sent
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        """Nothing has been sent since the last look: a ping, unless the last still waits for its client."""
        idle = self._num_sent == self._num_seen and (self._pinging is None or self._pinging.done())
        if idle:
            self._pinging = asyncio.ensure_future(self._say())
        self._wait()

    async def _say(self) -> None:
        if not self._started:
            self._started = True
            headers = [*EVENT_STREAM_HEADERS]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": self._ping, "more_body": True})
