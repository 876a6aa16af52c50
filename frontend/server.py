"""HttpServer: one listening socket and its connections. Knows no requests and no signals.

run ──▶ accepts ──stop──▶ closes all that is idle, gives the rest LAST_EVENTS_S, returns
           └──retire──▶ accepts no more; returns when the last connection is done
"""

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import uvicorn
from starlette.types import ASGIApp

from protocol.frontend_options import FrontendOptions

from .certificate import tls_context
from .connection import KEEP_ALIVE_S, Connection, Limits, connection_type
from .tls_listener import TlsListener

LAST_EVENTS_S = 1
"""For error events to leave, after draining."""
RESERVED_FILES = 256
"""Descriptors that are not for connections of clients."""
LOOK_AGAIN_S = 0.05


class HttpServer:
    """Serves an app on a socket, once."""

    def __init__(
        self,
        app: ASGIApp,
        options: FrontendOptions,
        listener: socket.socket,
        on_listening: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises StartupError for a certificate that cannot be used."""
        context = tls_context(options)
        limits = Limits(
            receive_timeout_s=options.receive_timeout,
            write_stall_s=options.write_stall,
            max_connections=options.max_connections or _most_connections(),
        )
        self._listener = listener
        self._connection = connection_type(limits)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=self._connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_EVENTS_S,
            ),
            context,
            self._connection,
            on_listening,
        )

    async def run(self) -> None:
        """Until `stop`, or until `retire` has come to its end."""
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        self._server.stopped.set()

    async def retire(self) -> None:
        """Whoever connects from now on meets another process that listens on the same socket."""
        for accepting in self._server.servers:
            accepting.close()
        self._listener.close()
        await asyncio.sleep(LOOK_AGAIN_S)  # what was accepted in this moment is not among them before
        while True:  # uvicorn tells nobody of a connection's end
            connections = list(self._server.server_state.connections)
            for connection in connections:
                assert isinstance(connection, Connection)
                connection.retire()
            if not connections and not self._connection.connecting:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        self.stop()


class _Server(uvicorn.Server):
    """Says when it listens. Signals are the supervisor's business."""

    def __init__(
        self,
        config: uvicorn.Config,
        context: ssl.SSLContext | None,
        connection: type[Connection],
        on_listening: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.stopped = asyncio.Event()
        self._context = context
        self._connection = connection
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The original counts no client, and has no limit on one, before its TLS handshake is done."""
        self.servers = [await self._listen(one) for one in sockets or ()]  # type: ignore[misc]
        self.started = True
        self._on_listening()

    async def _listen(self, listener: socket.socket) -> asyncio.Server | TlsListener[Connection]:
        if self._context is None:
            return await asyncio.get_running_loop().create_server(
                self._connect, sock=listener, backlog=self.config.backlog
            )
        return TlsListener(
            listener,
            self._context,
            self._connection.limits.receive_timeout_s,
            self._connect,
            self._connection.connecting,
            lambda: self._connection.has_room(self.server_state.connections),
        )

    def _connect(self) -> Connection:
        return self._connection(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def main_loop(self) -> None:
        """Until stopped. The original wakes ten times a second, to look at what we do not use."""
        await self.stopped.wait()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if files == resource.RLIM_INFINITY else max(files - RESERVED_FILES, files // 2)
