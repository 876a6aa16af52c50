"""Live: GET /live/state and /live/events, what the engine core does and what befell it, for people.

A state is made when somebody asks, and shared by all who ask within the same quarter of a second. Events
come by themselves, a handful an hour, and the newest are kept; whoever listens gets those first.
"""

import asyncio
import time
from collections import deque

import msgspec
from msgspec import structs
from starlette.types import Receive, Scope, Send

from protocol.client import EngineClient
from protocol.errors import Overloaded, Unavailable
from protocol.observation import Event

from .door import Door
from .live_state import LiveEvent, LiveState, Status, describe
from .responses import EVENT_STREAM_HEADERS, send_json

STATE_EVERY_S = 0.25
ANSWER_TIMEOUT_S = 1.0
"""A page that shows that there is no answer is better than one that shows nothing."""
MOST_EVENTS = 100
MOST_LISTENERS = 64
KEEP_ALIVE_S = 15.0
"""A listener hears at least so often, so that a connection that is gone is seen to be."""


class Live:
    """Both endpoints of one frontend."""

    def __init__(self, client: EngineClient, door: Door) -> None:
        self._client = client
        self._door = door
        self._events: deque[LiveEvent] = deque(maxlen=MOST_EVENTS)
        self._num_events = 0
        self._newest = (0, -1)
        """(incarnation, number)"""
        self._changed = asyncio.Event()
        self._listeners = 0
        self._closed = False
        self._state: asyncio.Task[LiveState] | None = None
        self._fresh_until = 0.0
        client.on_event = self._take

    async def state(self, scope: Scope, receive: Receive, send: Send) -> None:
        now = asyncio.get_running_loop().time()
        if self._state is None or (self._state.done() and now >= self._fresh_until):
            self._state = asyncio.ensure_future(self._look())
        await send_json(send, await asyncio.shield(self._state), headers=[(b"cache-control", b"no-store")])

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._closed:
            raise Unavailable("the server is stopping")
        if self._listeners >= MOST_LISTENERS:
            raise Overloaded(f"{MOST_LISTENERS} connections listen to events already; close one of them")
        self._listeners += 1
        try:
            await self._door.attend(receive, self._tell(send))
        finally:
            self._listeners -= 1

    def close(self) -> None:
        """This frontend stops: its listeners are to look for another one."""
        self._closed = True
        self._wake()

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> LiveState:
        client = self._client
        status: Status = "no_engine_core"
        stats = snapshot = None
        if client.attached.is_set():
            try:
                pong, snapshot = await asyncio.gather(
                    client.ping(ANSWER_TIMEOUT_S), client.inspect(ANSWER_TIMEOUT_S)
                )
            except Unavailable:
                pass  # the page says so
            else:
                stats, status = pong.stats, "no_worker" if client.suspended else "ready"
        self._fresh_until = asyncio.get_running_loop().time() + STATE_EVERY_S
        return describe(time.time(), status, client.epoch, client.facts, stats, snapshot)

    async def _tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS]})
        told = 0
        while not self._closed:
            unheard = min(self._num_events - told, len(self._events))
            told, changed = self._num_events, self._changed
            news = b"".join(_encode(event) for event in list(self._events)[len(self._events) - unheard :])
            body = news or b": nothing new\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
            try:
                await asyncio.wait_for(changed.wait(), KEEP_ALIVE_S)
            except TimeoutError:
                continue
        await send({"type": "http.response.body", "body": b""})

    def _take(self, event: Event) -> None:
        """From the engine core, perhaps for the second time."""
        if (event.incarnation, event.number) <= self._newest:
            return
        known, self._newest = self._newest[0], (event.incarnation, event.number)
        if known and event.incarnation > known:
            self._add(event, kind="engine_core_restarted", num_requests=self._client.num_streams)
            if event.number == 0:
                return
        self._add(event, kind=event.kind, num_requests=event.num_requests)

    def _add(self, event: Event, *, kind: str, num_requests: int) -> None:
        made_here = "" if kind == event.kind else ".restart"
        self._events.append(
            LiveEvent(
                id=f"{event.incarnation}.{event.number}{made_here}",
                at=time.time() - event.age_s,
                kind=kind,
                num_requests=num_requests,
                duration_s=event.duration_s,
                subject=event.subject,
                cause=event.cause,
            )
        )
        self._num_events += 1
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _encode(event: LiveEvent) -> bytes:
    aged = structs.replace(event, age_s=max(time.time() - event.at, 0.0))
    return b"id: %b\ndata: %b\n\n" % (event.id.encode(), msgspec.json.encode(aged))
