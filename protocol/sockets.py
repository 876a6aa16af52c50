"""Typed endpoints: one socket, one encoder, one decoder, finite queues.

`Router` and `Dealer` are plain non-blocking ZeroMQ sockets whose frames are decoded into one union of
Structs. A frame that does not decode is counted and dropped; it never raises out of `drain`. Nothing
here knows an event loop: whoever owns the endpoint polls `fileno()` (edge-triggered: drain until empty
and look again after every send) or hands the socket to a `zmq.Poller` (level-triggered).
"""

import functools
import hashlib
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from .curve import CurveKeys
from .messages import ClientMessage, EngineMessage
from .steps import EngineToWorker, WorkerToEngine

In = TypeVar("In")
Out = TypeVar("Out")

MAX_FRAME_BYTES = 16 << 20
HIGH_WATER_MARK = 8192
"""Messages queued per peer. A peer that is this far behind does not consume any more."""

MOST_AT_ONCE = 64
"""Messages that a Router hands over in one go: its owner shows progress in between."""

HEARTBEAT_MS = 2000
"""On tcp. A peer whose machine is gone counts as disconnected after three times as long."""

_NOW, _NOW_AND_MORE, _READABLE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
_EVENTS, _MORE = zmq.EVENTS, zmq.RCVMORE
"""Plain numbers: combining enum members, and `zmq.Again` where nothing waits, cost microseconds each."""

DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)
"""All that a typed decoder raises on bytes it does not like."""


@functools.cache
def fingerprint() -> str:
    """Hash of the wire's schema, docstrings aside. Equal on both sides of every connection."""
    schema = msgspec.json.schema_components(
        [ClientMessage, EngineMessage, EngineToWorker, WorkerToEngine], ref_template="{name}"
    )

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: bare(value) for key, value in node.items() if key not in ("description", "title")}
        return [bare(item) for item in node] if isinstance(node, (list, tuple)) else node

    return hashlib.sha256(msgspec.json.encode(bare(schema), order="deterministic")).hexdigest()[:16]


class _Endpoint(Generic[In, Out]):
    """What Router and Dealer share: options, codec and counters."""

    def __init__(self, context: zmq.Context[Any], kind: int, incoming: Any) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self.dropped_frames = 0

    def fileno(self) -> int:
        """Descriptor that becomes readable when the socket's state changes (edge-triggered)."""
        return int(self.socket.getsockopt(zmq.FD))

    def readable(self) -> bool:
        """Whether a message waits; must be asked after each send when polling `fileno()`."""
        return bool(int(self.socket.getsockopt(_EVENTS)) & _READABLE)

    def close(self, linger_ms: int = 0) -> None:
        """Close; unsent messages are dropped after `linger_ms`."""
        self.socket.close(linger_ms)


class Router(_Endpoint[In, Out]):
    """The binding side; each peer is known by the identity that ZeroMQ gives its connection."""

    def __init__(self, context: "zmq.Context[Any]", incoming: Any) -> None:
        super().__init__(context, zmq.ROUTER, incoming)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    @property
    def sockets(self) -> list["zmq.Socket[bytes]"]:
        """To poll; `drain` when any is readable."""
        return [self.socket]

    def bind(self, endpoint: str) -> None:
        """Listen. The endpoint must be new: a second bind on an ipc path would steal it silently."""
        if not endpoint.startswith("ipc://"):
            raise ValueError(f"{endpoint}: only ipc:// is bound without keys; for tcp:// see CurveRouter")
        self.socket.bind(endpoint)

    def drain(self, limit: int = MOST_AT_ONCE) -> list[tuple[bytes, In]]:
        """Messages that have arrived, oldest first, with the peers that sent them."""
        received: list[tuple[bytes, In]] = []
        socket = self.socket
        for _ in range(limit):
            if not self.readable():
                break
            peer, body = socket.recv(_NOW), socket.recv(_NOW)
            if socket.getsockopt(_MORE):
                self._drop_rest()
                continue
            try:
                received.append((peer, self._decode(body)))
            except DECODE_ERRORS:
                self.dropped_frames += 1
        return received

    def _drop_rest(self) -> None:
        """Of a message that has more frames than a peer and a body."""
        while self.socket.getsockopt(_MORE):
            self.socket.recv(_NOW)
        self.dropped_frames += 1

    def send(self, peer: bytes, message: Out) -> bool:
        """Queue a message. False: the peer is gone, or has stopped consuming; nothing was queued."""
        try:
            self.socket.send(peer, _NOW_AND_MORE)
            self.socket.send(self._encode(message), _NOW)
        except zmq.ZMQError:
            return False
        return True


class Dealer(_Endpoint[In, Out]):
    """The connecting side of one link."""

    def __init__(self, context: "zmq.Context[Any]", incoming: Any) -> None:
        super().__init__(context, zmq.DEALER, incoming)

    def connect(self, endpoint: str, curve: CurveKeys | None = None) -> None:
        """Connect; messages are queued until the other side is there. ValueError: `tcp://` without keys."""
        if not endpoint.startswith("ipc://"):
            if curve is None:
                raise ValueError(f"{endpoint}: only ipc:// is spoken without keys; pass curve=CurveKeys(…)")
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server_public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public.encode())
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
            self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.connect(endpoint)

    def drain(self, limit: int = 1024) -> list[In]:
        """All messages that have arrived, oldest first."""
        return [message for message, _ in self.drain_frames(limit)]

    def drain_frames(self, limit: int = 1024) -> list[tuple[In, bytes]]:
        """As `drain`, each with the bytes it came from, for whoever forwards them."""
        received: list[tuple[In, bytes]] = []
        for _ in range(limit):
            if not self.readable():
                break
            body = self.socket.recv(_NOW)
            try:
                received.append((self._decode(body), body))
            except DECODE_ERRORS:
                self.dropped_frames += 1
        return received

    def send(self, message: Out) -> bool:
        """Queue a message. False: the queue is full because the other side does not consume."""
        try:
            self.socket.send(self._encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
