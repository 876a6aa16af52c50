"""GET /health/live, /health/ready, /version and /metrics: how this server is. Knows no requests.

Live means that this process answers. Ready means that an engine core's main loop answers, too: after a
Ping has gone round, not because somebody once said so.
"""

from importlib.metadata import PackageNotFoundError, version

from starlette.types import Receive, Scope, Send

from protocol.errors import Unavailable

from ..metrics import CONTENT_TYPE
from ..responses import send_body, send_json
from ..service import Service

PONG_TIMEOUT_S = 1.0


class Status:
    """All four endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service
        try:
            self._version = version("tern")
        except PackageNotFoundError:  # run from a checkout that is not installed
            self._version = "0+checkout"

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"status": "live"})

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, door = self._service.client, self._service.door
        if door.draining:
            raise Unavailable("the server is stopping")
        if client.facts is None or not client.attached.is_set():
            raise Unavailable("no engine core is attached")
        pong = await client.ping(PONG_TIMEOUT_S)
        await send_json(send, {"status": "ready", "epoch": pong.epoch})

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"version": self._version})

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._service.metrics.scrape(self._service.client)
        await send_body(send, body, content_type=CONTENT_TYPE)
