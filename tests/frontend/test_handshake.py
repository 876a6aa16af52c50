"""TLS that is still to come has as much time as anything else of a request, and counts as a connection."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from frontend import connection
from frontend.server import HttpServer
from protocol.frontend_options import FrontendOptions
from tests.frontend.fake_engine import DEADLINE_S

STACK = Path(__file__).parents[1] / "stack"
CERTIFICATE, KEY = str(STACK / "localhost.pem"), str(STACK / "localhost.key")
GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
NEVER_S = 1000.0


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"hello {scope['scheme']}".encode()})


class Client:
    """Of an https server, which it can tell to `retire`."""

    def __init__(self, port: int, retire: Callable[[], Awaitable[None]]) -> None:
        self.port = port
        self.retire = retire
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Nothing is said yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def get(self, over: socket.socket | None = None) -> bytes:
        """Sent right behind the handshake. `over`: a connection that is there."""
        context = ssl.create_default_context(cafile=CERTIFICATE)
        where: dict[str, Any] = {"sock": over} if over else {"host": "127.0.0.1", "port": self.port}
        reader, writer = await asyncio.open_connection(**where, ssl=context, server_hostname="localhost")
        self._writers.append(writer)
        writer.write(GET)
        return await reader.read()

    async def until_served(self) -> None:
        """Others have to leave first."""
        while not (await self.get()).startswith(b"HTTP/1.1 200 "):
            pass

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


Scenario = Callable[[Client], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[..., None]:
    """play(scenario, **options) with a server."""

    def run(scenario: Scenario, **options: float) -> None:
        async def whole() -> None:
            listener = socket.create_server(("127.0.0.1", 0))
            listening = asyncio.Event()
            fixed = FrontendOptions(ssl_certfile=CERTIFICATE, ssl_keyfile=KEY, **options)  # type: ignore[arg-type]
            server = HttpServer(hello, fixed, listener, listening.set)
            client = Client(listener.getsockname()[1], server.retire)
            running = asyncio.ensure_future(server.run())
            await listening.wait()
            await scenario(client)
            server.stop()
            await running
            client.close()
            listener.close()

        async def limited() -> None:
            await asyncio.wait_for(whole(), DEADLINE_S)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(limited())

    return run


def test_requests_are_answered(play: Callable[..., None]) -> None:
    async def scenario(client: Client) -> None:
        answers = await asyncio.gather(*[client.get() for _ in range(20)])
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert all(b"hello https" in answer for answer in answers)

    play(scenario, receive_timeout=NEVER_S)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00", GET], ids=["silent", "slow", "http"])
def test_who_does_not_shake_hands_is_cut_off(play: Callable[..., None], said: bytes) -> None:
    async def scenario(client: Client) -> None:
        reader, writer = await client.connect()
        writer.write(said)
        assert b"hello" not in await reader.read()
        assert b"hello https" in await client.get()

    play(scenario, receive_timeout=0.3)


def test_handshakes_count_as_connections(play: Callable[..., None]) -> None:
    async def scenario(client: Client) -> None:
        silent = [(await client.connect())[1] for _ in range(2)]
        refused = await client.get()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in refused
        silent[0].close()
        await client.until_served()

    play(scenario, receive_timeout=NEVER_S, max_connections=2)


def test_handshakes_that_failed_count_no_more(play: Callable[..., None]) -> None:
    async def scenario(client: Client) -> None:
        for _ in range(5):
            reader, writer = await client.connect()
            writer.write(GET)
            await reader.read()
        await client.until_served()

    play(scenario, receive_timeout=NEVER_S, max_connections=1)


def test_far_over_the_limit_there_is_not_even_a_handshake(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_LINGERING", 1)

    async def scenario(client: Client) -> None:
        for _ in range(2):
            await client.connect()
        reader, _ = await client.connect()
        assert await reader.read() == b""

    play(scenario, receive_timeout=NEVER_S, max_connections=1)


def test_who_shakes_hands_while_the_server_retires_is_served(play: Callable[..., None]) -> None:
    async def scenario(client: Client) -> None:
        with socket.create_connection(("127.0.0.1", client.port)) as early:
            early.setblocking(False)
            await client.until_served()  # the one before it has been accepted by then
            retiring = asyncio.ensure_future(client.retire())
            await asyncio.sleep(0)
            assert b"hello https" in await client.get(early.dup())
            await retiring

    play(scenario, receive_timeout=NEVER_S)
