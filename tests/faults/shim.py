"""A bad line between clients and an engine core: drops, doubles and swaps frames. Never reads them.

    client DEALER ──▶ ROUTER (shim) ──DEALER per client──▶ ROUTER engine core

A thread of its own; everything it does follows from counting, so that a run is as bad as the next.
"""

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq


@dataclass
class Direction:
    """What befalls the frames that go one way; 0 is never."""

    drop_every: int = 0
    double_every: int = 0
    swap_every: int = 0
    """With the one that follows it."""
    count: int = 0
    dropped: int = 0
    doubled: int = 0
    swapped: int = 0

    def __post_init__(self) -> None:
        self._held: dict[bytes, bytes] = {}

    def pass_on(self, peer: bytes, frame: bytes) -> list[bytes]:
        """What comes out when a frame goes in."""
        self.count += 1
        if self.drop_every and self.count % self.drop_every == 0:
            self.dropped += 1
            return []
        if self.swap_every and self.count % self.swap_every == 0 and peer not in self._held:
            self._held[peer] = frame
            return []
        out = [frame]
        if self.double_every and self.count % self.double_every == 0:
            self.doubled += 1
            out.append(frame)
        if (held := self._held.pop(peer, None)) is not None:
            self.swapped += 1
            out.append(held)
        return out


class Shim:
    """As `with`: clients connect to `endpoint` instead of the engine core's own."""

    def __init__(self, engine_endpoint: str, endpoint: str, requests: Direction, answers: Direction) -> None:
        self.endpoint = endpoint
        self._engine_endpoint = engine_endpoint
        self._requests, self._answers = requests, answers
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(endpoint)
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(50))
            if self._front in ready:
                peer, frame = self._front.recv_multipart()
                if peer not in self._backs:
                    self._backs[peer] = self._context.socket(zmq.DEALER)
                    self._backs[peer].connect(self._engine_endpoint)
                    poller.register(self._backs[peer], zmq.POLLIN)
                for out in self._requests.pass_on(peer, frame):
                    self._backs[peer].send(out)
            for peer, back in self._backs.items():
                if back in ready:
                    for out in self._answers.pass_on(peer, back.recv()):
                        self._front.send_multipart([peer, out])
