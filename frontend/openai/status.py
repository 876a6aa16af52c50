"""GET /health/live, /health/ready, /load, /version and /metrics: how this server is. Knows no requests.

Live means that this process answers. Ready means that an engine core with a worker answers, too: after a
Ping has gone round its main loop, not because somebody once said so.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from protocol.errors import Unavailable

from ..metrics import CONTENT_TYPE
from ..responses import send_body, send_json
from ..service import Service

PONG_TIMEOUT_S = 1.0


class Live(Struct, frozen=True):
    status: Literal["live"] = "live"


class Ready(Struct, frozen=True):
    epoch: int
    status: Literal["ready"] = "ready"


class Load(Struct, frozen=True):
    """Of the engine core behind this server, for load balancers."""

    server_load: int
    """Requests that run or wait."""
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    """Part of the KV blocks that is in use, 0 … 1."""


class Version(Struct, frozen=True):
    version: str


class Status:
    """All of these endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service
        try:
            self._version = version("tern")
        except PackageNotFoundError:  # run from a checkout that is not installed
            self._version = "0+checkout"

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, Live())

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, door = self._service.client, self._service.door
        if door.draining:
            raise Unavailable("the server is stopping")
        if client.facts is None or not client.attached.is_set():
            raise Unavailable("no engine core is attached")
        if client.suspended:
            raise Unavailable("no worker is there for the moment; requests wait")
        pong = await client.ping(PONG_TIMEOUT_S)
        await send_json(send, Ready(pong.epoch))

    async def load(self, scope: Scope, receive: Receive, send: Send) -> None:
        stats = (await self._service.client.ping(PONG_TIMEOUT_S)).stats
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        running, waiting = stats.num_running, stats.num_waiting
        await send_json(send, Load(running + waiting, running, waiting, round(used, 6)))

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, Version(self._version))

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._service.metrics.scrape(self._service.client)
        await send_body(send, body, content_type=CONTENT_TYPE)
