"""Connection: one client's TCP connection, and how long and how much it may ask. Knows no endpoint.

    connected ──▶ head ──▶ body ──▶ answer ──▶ idle ──▶ head …
    └ receive_timeout ┘└ receive_timeout      └ KEEP_ALIVE_S

Who sends too slowly, too much or no HTTP is told so once and cut off; who does not read is aborted, and with
it what is computed for it. A streamed token costs none of this anything: timers are set when a stage begins.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, ClassVar

import httptools
from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from protocol.errors import RequestError, TernError, Unavailable

from .responses import error_body, error_headers

KEEP_ALIVE_S = 65
"""Longer than the clients' own, so that they close idle connections, not we under their next request."""
MAX_HEAD_BYTES = 64 << 10
"""Request line and headers; trailers and the framing of chunks, too."""
MAX_PIPELINED = 16
"""Requests that one connection sends ahead of its answers."""
LINGER_S = 1.0
"""For a client that was told off to read it, while what it still sends is thrown away."""
LATE_S = 0.25
"""A timer that rings later than this found the process away: stopped, starved or busy."""
MAX_LINGERING = 128
"""Connections over the cap that are told so; more are dropped without a word."""


class HeadersTooLarge(RequestError):
    """More than MAX_HEAD_BYTES before the body."""

    code = "headers_too_large"
    status = 431


class ReceiveTimeout(RequestError):
    """A request that did not come to its end in time."""

    code = "request_timeout"
    status = 408


class MalformedRequest(RequestError):
    """Not HTTP/1.1."""

    code = "malformed_request"


class Limits(Struct, frozen=True, kw_only=True):
    """Of each connection; see FrontendOptions."""

    receive_timeout_s: float
    write_stall_s: float
    max_connections: int


def connection_type(limits: Limits) -> type["Connection"]:
    """What uvicorn makes one of for each connection that it accepts."""

    class Limited(Connection):
        pass

    Limited.limits, Limited.turned_away, Limited.connecting = limits, set(), set()
    return Limited


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, in which `cycle` is the newest request and `pipeline` holds those that wait."""

    limits: ClassVar[Limits]
    turned_away: ClassVar[set["Connection"]]
    """Over the cap, and about to be closed; not among `connections`."""
    connecting: ClassVar[set["Connection"]]
    """Accepted, and counted, but their TLS handshake is under way; not among `connections`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._answering: RequestResponseCycle | None = None
        """The request whose answer is being written, or was last."""
        self._silent = True
        self._receiving = True
        """A request has begun, or is the first to be expected, and has not come to its end."""
        self._head_done = False
        self._head_bytes = 0
        self._idle_bytes = 0
        """Received since the last stretch of body, or end of a head or of a request."""
        self._deaf = False
        """What still comes is thrown away."""
        self._retiring = False
        self._stall: asyncio.TimerHandle | None = None

    @classmethod
    def has_room(cls, connections: Collection[Any]) -> bool:
        """For one more, if only to tell it that there is none. `connections`: those that are made."""
        taken = len(connections) + len(cls.connecting) + len(cls.turned_away)
        return taken < cls.limits.max_connections + MAX_LINGERING

    # ── the transport's side ────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.connecting.discard(self)
        if len(self.connections) + len(self.connecting) <= self.limits.max_connections:
            self._expect_request()
            return
        self.connections.discard(self)
        if len(self.turned_away) < MAX_LINGERING:
            self.turned_away.add(self)
            self._refuse(Unavailable("this server has as many connections as it can take; try again later"))
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.turned_away.discard(self)
        self._unset_keepalive_if_required()
        self._unset_stall()
        self.pipeline.clear()
        self._give_up_answer()

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        self._idle_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # answered as if it had not asked for another protocol
            self.cycle.keep_alive, self._deaf = False, True
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, TernError) else MalformedRequest("this is not HTTP/1.1"))
        else:
            if self._idle_bytes > MAX_HEAD_BYTES:
                self._refuse(_headers_too_large())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unset_stall()

    # ── the parser's side ───────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._silent, self._receiving, self._head_done = False, True, False
        self._head_bytes = 0
        self._expect_request()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer, too late to mean anything
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + len(": \r\n")

    def on_headers_complete(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _headers_too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest(f"more than {MAX_PIPELINED} requests wait; read their answers first")
        self._head_done, self._idle_bytes = True, 0
        super().on_headers_complete()
        if self._retiring:
            self.cycle.keep_alive = False
        self._expect_request()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving, self._idle_bytes = False, 0
        if self._busy:
            self._unset_keepalive_if_required()
        else:  # answered before it had come to its end
            self._arm(KEEP_ALIVE_S, self._close)

    # ── the answer's side ───────────────────────────────────────────────────────────────────────

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self._on_answered)

    def _on_answered(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self in self.connections and self.transport.is_closing():
            self._close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._expect_request()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        """The server stops now: who is still sending a request is told to come back."""
        if self._awaits_body or (self._receiving and not self._silent and not self._busy):
            self._refuse(Unavailable("the server is stopping"))
        else:
            super().shutdown()

    def retire(self) -> None:
        """Finish what is being received or answered, then close."""
        if self._retiring:
            return
        self._retiring = True
        if not self._busy and not self._receiving:
            self._close()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    @property
    def _busy(self) -> bool:
        return self._answering is not None and not self._answering.response_complete

    @property
    def _awaits_body(self) -> bool:
        """Of the request that is being answered."""
        return self._receiving and self._head_done and self._answering is self.cycle

    def _expect_request(self) -> None:
        """Give the rest of the request time from now, unless it has to wait for an earlier one itself."""
        if self._receiving and (self._awaits_body or not self._busy):
            self._arm(self.limits.receive_timeout_s, self._on_receive_timeout)

    def _on_receive_timeout(self) -> None:
        if self._silent or (self._head_done and not self._busy):
            self._close()  # it has asked for nothing, or has its answer
            return
        part = "body" if self._head_done else "headers"
        limit = f"{self.limits.receive_timeout_s:g} s"
        self._refuse(ReceiveTimeout(f"the request's {part} did not come within {limit}"))

    def _give_up_answer(self) -> None:
        if self._answering is not None and self._busy:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _refuse(self, error: TernError) -> None:
        """Say why, and listen no more. While an earlier request is answered, nothing can be said."""
        answering = self._answering
        if answering is not None and self._busy:
            if answering.response_started or not self._awaits_body:
                self._close()
                return
            self._give_up_answer()
        self._deaf = True
        body = error_body(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *error_headers(error),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        with suppress(OSError, NotImplementedError):  # the client is gone already; TLS knows no half-close
            self.transport.write_eof()  # to close at once would discard it, if there is unread input
        self.flow.resume_reading()
        self._arm(LINGER_S, self.transport.abort)

    def _close(self) -> None:
        """Once all is written; but not if nobody reads it."""
        self.transport.close()
        self._arm(self.limits.write_stall_s, self.transport.abort)

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        self._unset_keepalive_if_required()
        due = self.loop.time() + seconds
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self._ring, due, seconds, then)

    def _ring(self, due: float, seconds: float, then: Callable[[], None]) -> None:
        """Time is up, unless it was we who were away: what came meanwhile has not been read yet."""
        if self.loop.time() > due + LATE_S:
            self._arm(seconds, then)
        else:
            then()

    def _on_stall(self, due: float) -> None:
        if self.loop.time() > due + LATE_S:
            self._watch_reader()
        else:
            self.transport.abort()

    def _watch_reader(self) -> None:
        self._unset_stall()
        seconds = self.limits.write_stall_s
        self._stall = self.loop.call_later(seconds, self._on_stall, self.loop.time() + seconds)

    def _unset_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _headers_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"the headers have more than {MAX_HEAD_BYTES} bytes")
