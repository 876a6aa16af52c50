"""TlsListener: accepts clients on one socket and shakes hands with each. Knows no HTTP.

An event loop's own server tells nobody of a client before its handshake is done. Here the client's protocol
is made, and counts, from accept on:

    accepted ──▶ connecting ──handshake──▶ connection_made
                     └ HANDSHAKE_TIMEOUT, failed, closed ──▶ gone
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("tern.frontend")

MOST_AT_ONCE = 100
"""Accepted before others have their turn."""
FULL_WAIT_S = 1.0
"""Until another try, when the process has no descriptor left."""

Client = TypeVar("Client", bound=asyncio.Protocol)


class TlsListener(Generic[Client]):
    """Accepts from its making on, until `close`. The socket is the caller's to close. To uvicorn a Server.

    `may_come` is asked first: who may not is closed without a word. `connecting` has those whose handshake is
    under way; it is the caller's set, and a protocol that has its `connection_made` is no longer in it.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        handshake_timeout_s: float,
        connect: Callable[[], Client],
        connecting: set[Client],
        may_come: Callable[[], bool],
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._context = context
        self._handshake_timeout_s = handshake_timeout_s
        self._connect = connect
        self._connecting = connecting
        self._may_come = may_come
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._accept_on()

    def close(self) -> None:
        """Accept no more. Handshakes go on."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        elif self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """End the handshakes that are under way."""
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _accept_on(self) -> None:
        self._again = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process was quicker, or the client has left
            except OSError as error:
                log.warning("cannot accept a client: %s; again in %g s", error.strerror, FULL_WAIT_S)
                self._loop.remove_reader(self._listener)
                self._again = self._loop.call_later(FULL_WAIT_S, self._accept_on)
                return
            if not self._may_come():
                client.close()
                continue
            client.setblocking(False)
            protocol = self._connect()
            self._connecting.add(protocol)
            task = self._loop.create_task(self._shake_hands(client, protocol))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, client: socket.socket, protocol: Client) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                client,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_timeout_s,
            )
        except OSError:
            pass  # no TLS, too slow, or gone: ssl's errors are OSErrors, too
        finally:
            self._connecting.discard(protocol)
