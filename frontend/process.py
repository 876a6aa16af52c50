"""The frontend as a process: what it tells the supervisor, what it is told, and how it ends.

Start ▶ load tokenizer and template ▶ listen ▶ Ready
EngineAt ▶ attach there, and go on with every stream      Drain ▶ let streams finish, exit 0
Quit, or the supervisor's end of file ▶ exit now
"""

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import assert_never

import uvicorn
import uvloop

from protocol.client import EngineClient
from protocol.config import FrontendConfig
from protocol.control import (
    ChildChannel,
    Drain,
    EngineAt,
    Failed,
    PeerGone,
    Phase,
    Quit,
    Ready,
    Retire,
    Start,
)
from protocol.errors import StartupError

from .app import make_app
from .service import Service

log = logging.getLogger("tern.frontend")

KEEP_ALIVE_S = 65
"""Longer than the clients' own, so that they close idle connections, not we under their next request."""
LAST_EVENTS_S = 1
"""For error events to leave, after draining."""


class _Server(uvicorn.Server):
    """Says when it listens. Signals are the supervisor's business."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._stopped = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    async def main_loop(self) -> None:
        """Until `stop`. The original wakes ten times a second, to look at what we do not use."""
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


class Frontend:
    """One running frontend process."""

    def __init__(self, channel: ChildChannel, config: FrontendConfig) -> None:
        self._channel = channel
        self._client = EngineClient(f"frontend-{config.index}", config.incarnation)
        self._service = Service.load(config, self._client)
        self._socket = socket.socket(fileno=config.listen_fd)
        self._server = _Server(
            uvicorn.Config(
                make_app(self._service),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_EVENTS_S,
            ),
            self._announce,
        )
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until told to drain."""
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._listen_to_supervisor)
        await self._server.serve(sockets=[self._socket])
        await self._client.close()

    def _announce(self) -> None:
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: keep collections off it
        tokenizer, template = self._service.tokenizer, self._service.template
        facts = {
            "tokenizer": f"{tokenizer.vocab_size} tokens",
            "chat_template": "yes" if template is not None else "no",
            "models": ", ".join(self._service.model_names),
        }
        self._channel.send(Ready(facts))

    def _listen_to_supervisor(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                match message:
                    case EngineAt():
                        self._client.reattach(message.clients_endpoint)
                    case Drain():
                        self._draining = self._draining or asyncio.ensure_future(
                            self._drain(message.timeout_s)
                        )
                    case Quit():
                        _exit_now()
                    case Start() | PeerGone() | Retire():
                        pass  # not for us
                    case _:
                        assert_never(message)
        except EOFError:
            _exit_now()

    async def _drain(self, timeout_s: float) -> None:
        """The socket stays open meanwhile: who connects is told to come back, not left without an answer."""
        await self._service.door.drain(timeout_s)
        self._server.stop()


def run(channel: ChildChannel, config: FrontendConfig) -> None:
    """The whole life of the process."""
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    # Connections that we cut off on purpose, and requests that are not HTTP, are no news.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    channel.send(Phase("tokenizer", config.model.tokenizer or config.model.model))

    async def serve() -> None:
        await Frontend(channel, config).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except StartupError as error:
        channel.send(Failed(error.code, error.message, error.hint, error.exit_code))
        sys.exit(error.exit_code)


def _exit_now() -> None:
    """Nothing is worth saving: streams end with their connections, and the engine core sees ours end."""
    os._exit(0)
