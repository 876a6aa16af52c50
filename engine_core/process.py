"""The engine core as a process: its sockets, its clock, and what the supervisor tells it.

One thread. Between messages it sleeps in poll and costs nothing; it wakes by itself only for a deadline.
"""

import time
from collections.abc import Callable
from typing import Any, assert_never

import zmq

from protocol.config import EngineCoreConfig
from protocol.control import ChildChannel, Drain, EngineAt, PeerGone, Quit, Retire, Start
from protocol.messages import ClientMessage, EngineMessage
from protocol.progress import Progress
from protocol.remote import CurveRouter, Routers
from protocol.sockets import Router
from protocol.steps import EngineToWorker, WorkerToEngine

from .engine import Engine
from .grammar import Threads, deepen_stack
from .pulse import Pulse

ClientsRouter = Router[ClientMessage, EngineMessage] | Routers[ClientMessage, EngineMessage]

_LONGEST_POLL_MS = 1 << 30
_TURN_BUDGET_S = 0.75
"""A turn takes milliseconds; a crowd of long prompts at once may take some hundred."""


class EngineProcess:
    """Binds what the config names, and runs until told to quit or left alone."""

    def __init__(self, config: EngineCoreConfig, channel: ChildChannel) -> None:
        self._channel = channel
        self._context: zmq.Context[Any] = zmq.Context()
        self._clients = _listen(config, self._context)
        self._workers: Router[WorkerToEngine, EngineToWorker] = Router(self._context, WorkerToEngine)
        self._workers.bind(config.workers_endpoint)
        deepen_stack()
        self._hands = Threads()
        self.engine = Engine(config, self._clients, self._workers, time.monotonic, self._hands)
        self._pulse = Pulse(config.status_interval_s, self.engine.stats, channel.send)
        self._progress = Progress(config.progress_fd, config.progress_row)
        self._quitting = False

    def run(self) -> None:
        """The loop."""
        engine, progress = self.engine, self._progress
        sources: dict[object, Callable[[], None]] = {
            self._channel.fileno(): self._read_control,
            self._hands.fileno(): self._hands.clear,
            self._workers.socket: engine.collect,
        }
        for socket in self._clients.sockets:
            sources[socket] = engine.receive
        poller = zmq.Poller()
        for source in sources:
            poller.register(source, zmq.POLLIN)
        while not self._quitting:
            progress.idle()
            ready = poller.poll(self._poll_ms())
            progress.busy(_TURN_BUDGET_S)
            for source, _ in ready:
                sources[source]()
            engine.advance()
            self._pulse.look(busy=engine.busy, now=time.monotonic())
        engine.close()
        self._hands.close()
        self._clients.close()
        self._context.destroy(linger=0)
        self._channel.close()

    def _poll_ms(self) -> int | None:
        deadline = self.engine.next_deadline()
        if deadline is None:
            return None
        return min(max(0, int((deadline - time.monotonic()) * 1000) + 1), _LONGEST_POLL_MS)

    def _read_control(self) -> None:
        """What the supervisor says."""
        try:
            while (message := self._channel.receive()) is not None:
                match message:
                    case PeerGone():
                        self.engine.on_peer_gone(
                            message.incarnation, crashed=message.crashed, cause=message.cause
                        )
                    case Quit() | Drain():
                        self._quitting = True
                    case Start() | EngineAt() | Retire():
                        pass
                    case _:
                        assert_never(message)
        except EOFError:
            self._quitting = True


def _listen(config: EngineCoreConfig, context: "zmq.Context[Any]") -> ClientsRouter:
    """In the run folder, and on tcp if the operator wants that. Raises StartupError."""
    local: Router[ClientMessage, EngineMessage] = Router(context, ClientMessage)
    local.bind(config.clients_endpoint)
    if not config.engine_endpoint:
        return local
    remote: CurveRouter[ClientMessage, EngineMessage] = CurveRouter(
        ClientMessage, config.engine_endpoint, config.curve_secret_key, config.curve_allowed_keys
    )
    return Routers([local, remote])
