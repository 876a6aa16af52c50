"""The frontend as a process: what it tells the supervisor, what it is told, and how it ends.

Start ▶ load tokenizer and template ▶ listen ▶ Ready
EngineAt ▶ attach there, and go on with every stream      Drain ▶ let streams finish, exit 0
Retire ▶ accept no more, let streams finish, exit 0       Quit, or the supervisor's end of file ▶ exit now
"""

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
from typing import assert_never

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

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
from protocol.progress import Progress

from .app import make_app
from .request_log import JsonFormatter
from .server import HttpServer
from .service import Service

log = logging.getLogger("tern.frontend")

LOADING_BUDGET_S = 60.0
TICK_S = 0.2
TICK_BUDGET_S = 0.75
"""An event loop that is blocked by one thing for twice as long is a hang, and is seen as one within 2 s.
Whatever may take longer than some milliseconds runs in a thread."""
EXIT_BUDGET_S = 10.0


class Beating:
    """Each request that arrives is a part of the loop's work: hundreds that arrive at once are no hang."""

    def __init__(self, app: ASGIApp, progress: Progress) -> None:
        self._app = app
        self._progress = progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._progress.beat()
        await self._app(scope, receive, send)


class Frontend:
    """One running frontend process."""

    def __init__(self, channel: ChildChannel, config: FrontendConfig, progress: Progress) -> None:
        self._channel = channel
        self._progress = progress
        self._client = EngineClient(f"frontend-{config.index}", config.incarnation)
        self._service = Service.load(config, self._client, progress.restarts)
        app = Beating(make_app(self._service), progress)
        self._server = HttpServer(
            app, config.frontend, socket.socket(fileno=config.listen_fd), self._announce
        )
        self._draining: asyncio.Task[None] | None = None
        self._retiring: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until told to drain or to retire."""
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._listen_to_supervisor)
        self._tick()
        await self._server.run()
        self._service.grammars.close()
        await self._client.close()

    def _tick(self) -> None:
        self._progress.busy(TICK_BUDGET_S)
        self._service.metrics.follow(self._client)
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _announce(self) -> None:
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: keep collections off it
        tokenizer, template = self._service.tokenizer, self._service.template
        facts = {
            "tokenizer": f"{tokenizer.vocab_size} tokens",
            "chat_template": "yes" if template is not None else "no",
            "models": ", ".join((*self._service.model_names, *self._service.adapters)),
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
                    case Retire():
                        self._service.live.close()
                        self._retiring = self._retiring or asyncio.ensure_future(self._server.retire())
                    case Start() | PeerGone():
                        pass  # not for us
                    case _:
                        assert_never(message)
        except EOFError:
            _exit_now()

    async def _drain(self, timeout_s: float) -> None:
        """The socket stays open meanwhile: who connects is told to come back, not left without an answer."""
        self._service.live.close()
        await self._service.door.drain(timeout_s)
        self._server.stop()


def run(channel: ChildChannel, config: FrontendConfig) -> None:
    """The whole life of the process."""
    as_json = config.log_format == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    # Connections that we cut off on purpose, and requests that are not HTTP, are no news.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    progress = Progress(config.progress_fd, config.progress_row)
    progress.busy(LOADING_BUDGET_S)
    channel.send(Phase("tokenizer", config.model.tokenizer or config.model.model))

    async def serve() -> None:
        await Frontend(channel, config, progress).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
            progress.busy(EXIT_BUDGET_S)
    except StartupError as error:
        channel.send(Failed(error.code, error.message, error.hint, error.exit_code))
        sys.exit(error.exit_code)


def _exit_now() -> None:
    """Nothing is worth saving: streams end with their connections, and the engine core sees ours end."""
    os._exit(0)
