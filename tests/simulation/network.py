"""A virtual clock with a heap of events, and links that lose, double, delay and reorder. Knows no process."""

import heapq
import itertools
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from protocol.messages import ClientMessage, EngineMessage
from protocol.steps import EngineToWorker, WorkerToEngine

LATENCY_S = 0.0001
_STRAY_S = 3.0
"""The longest that a delayed frame is on its way."""


class Agenda:
    """What happens when. Events at the same time happen in the order in which they were entered."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_events = 0
        self.trace = 0
        """Hash of all events so far: two runs that have the same one did the same things."""
        self._heap: list[tuple[float, int, bytes, Callable[[], object]]] = []
        self._tie = itertools.count()

    def at(self, time: float, label: bytes, call: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (max(time, self.now), next(self._tie), label, call))

    def after(self, delay_s: float, label: bytes, call: Callable[[], object]) -> None:
        self.at(self.now + delay_s, label, call)

    def run(self, until: float) -> None:
        """All events up to a time, which is then the present."""
        heap, pack = self._heap, struct.Struct("<d").pack
        while heap and heap[0][0] <= until:
            self.now, _, label, call = heapq.heappop(heap)
            self.num_events += 1
            self.note(label + pack(self.now))
            call()
        if until < math.inf:
            self.now = until

    def note(self, what: bytes) -> None:
        """Let the trace depend on this, too."""
        self.trace = zlib.crc32(what, self.trace)


@dataclass
class Weather:
    """How bad the clients' links are: shares of frames. Worker links lose nothing while both ends live."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    encoded: bool = False
    """Frames go through the wire's encoding."""

    @property
    def is_clear(self) -> bool:
        return self.drop == self.duplicate == self.delay == 0.0

    @property
    def strays(self) -> bool:
        """Frames may come twice or late."""
        return self.duplicate + self.delay > 0

    def clear(self) -> None:
        self.drop = self.duplicate = self.delay = 0.0


class Codec:
    """To bytes and back, as between processes."""

    def __init__(self, kind: Any) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def __call__(self, message: Any) -> Any:
        return self._decode(self._encode(message))


TO_ENGINE, TO_CLIENT = Codec(ClientMessage), Codec(EngineMessage)
FROM_WORKER, TO_WORKER = Codec(WorkerToEngine), Codec(EngineToWorker)


class Link:
    """One direction of one connection. What is under way at its closing is lost."""

    def __init__(
        self,
        agenda: Agenda,
        draw: Random,
        weather: Weather,
        codec: Codec,
        deliver: Callable[[Any], object],
        *,
        lossless: bool,
    ) -> None:
        self.open = True
        self._agenda = agenda
        self._draw = draw
        self._weather = weather
        self._codec = codec
        self._deliver = deliver
        self._lossless = lossless
        self.under_way = 0
        """Frames that were sent and have not arrived."""
        self._last = 0.0
        """When the newest frame arrives: a link without losses keeps their order."""

    def send(self, message: Any) -> None:
        if self._weather.encoded:
            message = self._codec(message)
        arrival = self._agenda.now + LATENCY_S * (1 + self._draw.random())
        if not self._lossless:
            fate, weather = self._draw.random(), self._weather
            if fate < weather.drop:
                return
            fate -= weather.drop
            if fate < weather.duplicate:
                self._enter(arrival + self._draw.random() * _STRAY_S, message)
            elif fate < weather.duplicate + weather.delay:
                self._enter(arrival + self._draw.random() * _STRAY_S, message)
                return
        arrival = self._last = max(arrival, self._last)
        self._enter(arrival, message)

    def _enter(self, arrival: float, message: Any) -> None:
        self.under_way += 1
        self._agenda.at(arrival, b"frame", lambda: self._arrive(message))

    def _arrive(self, message: Any) -> None:
        self.under_way -= 1
        if self.open:
            self._deliver(message)


class Connection:
    """Both directions between one process and one engine core."""

    def __init__(self, peer: bytes, up: Link, down: Link) -> None:
        self.peer = peer
        self.up = up
        """To the engine core."""
        self.down = down

    @property
    def open(self) -> bool:
        return self.up.open

    def close(self) -> None:
        self.up.open = self.down.open = False
