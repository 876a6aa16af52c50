"""CurveRouter: a Router at a `tcp://` endpoint, for allowed clients only; and several Routers as one.

Encryption alone lets in whoever knows the server's public key. So each connection's key is looked up in
the list of allowed ones: libzmq asks through a socket of its own (ZAP, https://rfc.zeromq.org/spec/27),
which is answered here, without a thread. The context is a private one, because ZAP speaks for every
socket of a context, and sockets in the run directory need no keys.
"""

from collections.abc import Sequence
from typing import Any, Generic

import zmq
from zmq.utils import z85

from .curve import read_allowed_keys, read_secret_key
from .errors import StartupError
from .sockets import HEARTBEAT_MS, MOST_AT_ONCE, In, Out, Router

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_CURVE = b"CURVE"
_HANDSHAKE_MS = 5000


class CurveRouter(Router[In, Out]):
    """Binds at once. A client without CURVE, or with a key that is not allowed, never becomes a peer."""

    def __init__(self, incoming: Any, endpoint: str, secret_key_file: str, allowed_keys_file: str) -> None:
        """Raises StartupError: the endpoint is taken, or a file is not what it should be."""
        self.denied = 0
        """Connections turned away for their key."""
        self._allowed = {z85.decode(key) for key in read_allowed_keys(allowed_keys_file)}
        secret = read_secret_key(secret_key_file)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        super().__init__(self._context, incoming)
        self.zap: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        try:
            self.zap.bind(_ZAP_ENDPOINT)
            self.socket.setsockopt(zmq.CURVE_SERVER, 1)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, secret.encode())
            self.socket.setsockopt(zmq.ZAP_DOMAIN, b"tern")
            self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else all get in if nobody answers ZAP
            self.socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
            self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise StartupError(
                f"cannot listen on {endpoint}: {error.strerror}",
                hint="name an address of this machine and a free port, and a key made by tern keys",
            ) from None
        self.endpoint = bytes(self.socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    @property
    def sockets(self) -> list["zmq.Socket[bytes]"]:
        return [self.socket, self.zap]

    def drain(self, limit: int = MOST_AT_ONCE) -> list[tuple[bytes, In]]:
        """As Router's; decides on new connections, too."""
        while int(self.zap.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.zap.send_multipart(self._decide(self.zap.recv_multipart()))
        return super().drain(limit)

    def close(self, linger_ms: int = 0) -> None:
        super().close(linger_ms)
        self.zap.close(0)
        self._context.term()

    def _decide(self, request: list[bytes]) -> list[bytes]:
        """The answer to a ZAP request. Whatever is not understood is denied."""
        version, request_id, _domain, _address, _identity, mechanism, *credentials = [*request, *[b""] * 6]
        keys = [credential for credential in credentials if credential]
        allowed = (
            version == _ZAP_VERSION and mechanism == _CURVE and len(keys) == 1 and keys[0] in self._allowed
        )
        self.denied += not allowed
        status, text = (b"200", b"OK") if allowed else (b"400", b"key not allowed")
        return [_ZAP_VERSION, request_id, status, text, b"", b""]


class Routers(Generic[In, Out]):
    """Several Routers as one: a peer is known by the number of its Router and its identity there."""

    def __init__(self, routers: Sequence[Router[In, Out]]) -> None:
        self._routers = list(routers)

    @property
    def sockets(self) -> list["zmq.Socket[bytes]"]:
        """To poll; `drain` when any is readable."""
        return [socket for router in self._routers for socket in router.sockets]

    @property
    def dropped_frames(self) -> int:
        return sum(router.dropped_frames for router in self._routers)

    def drain(self, limit: int = MOST_AT_ONCE) -> list[tuple[bytes, In]]:
        """Messages that have arrived at any, at most `limit` of each."""
        return [
            (bytes((number,)) + peer, message)
            for number, router in enumerate(self._routers)
            for peer, message in router.drain(limit)
        ]

    def send(self, peer: bytes, message: Out) -> bool:
        """As Router's."""
        return self._routers[peer[0]].send(peer[1:], message)

    def close(self) -> None:
        for router in self._routers:
            router.close()
