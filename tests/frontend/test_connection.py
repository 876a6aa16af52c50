"""Connections that are slow, silent, greedy, mute, too many or not HTTP: cut off, and nobody else notices."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.connection import Connection
from frontend.service import Service
from tests.frontend.conftest import Serve, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

Open = Callable[..., Awaitable["Client"]]
SHORT_S = 0.2
GET = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = msgspec.json.encode({"prompt": "x", "stream": True, "max_tokens": 100})


def post(body: bytes = BODY, *headers: bytes) -> bytes:
    head = [b"POST /v1/completions HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, part: bytes) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(part), DEADLINE_S)

    async def rest(self) -> bytes:
        """All until the server closes."""
        parts = []
        try:
            while part := await asyncio.wait_for(self._reader.read(1 << 16), DEADLINE_S):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)

    async def response(self) -> bytes:
        """One whole response with a length."""
        head = await self.until(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await asyncio.wait_for(self._reader.readexactly(length), DEADLINE_S)


@pytest.fixture
async def opener(
    make_service: Callable[..., Service], engine: FakeEngine, serve: Serve
) -> AsyncIterator[Callable[..., Awaitable[Open]]]:
    """opener(**options) starts a server, and returns what opens a connection to it."""
    clients: list[Client] = []

    async def start(**options: Any) -> Open:
        service = await attached(make_service(**options), engine)
        host, port = (await serve(service)).removeprefix("http://").split(":")

        async def connect(**settings: Any) -> Client:
            clients.append(Client(*await asyncio.open_connection(host, int(port), **settings)))
            return clients[-1]

        return connect

    yield start
    for client in clients:
        client.writer.transport.abort()
    await asyncio.gather(*(client.writer.wait_closed() for client in clients), return_exceptions=True)


Opener = Callable[..., Awaitable[Open]]


@pytest.mark.parametrize("filler", [b"x-a: " + b"v" * 1000 + b"\r\n", b"x" * 1000], ids=["many", "one"])
async def test_headers_without_an_end(opener: Opener, filler: bytes) -> None:
    client = await (await opener())()
    client.send(b"GET /version HTTP/1.1\r\n" + (b"" if b":" in filler else b"x-a: "))
    for _ in range(80):
        client.send(filler)
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"headers_too_large" in answer


async def test_headers_over_the_limit_in_one_go(opener: Opener) -> None:
    connect = await opener()
    for size, status in ((60_000, b"200"), (66_000, b"431")):
        client = await connect()
        client.send(b"GET /version HTTP/1.1\r\nconnection: close\r\nx-a: " + b"v" * size + b"\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 " + status)


async def test_time_in_which_the_server_was_away_does_not_count() -> None:
    """Stopped, say, while the request came: a timer that rings late rings again later."""
    connection = object.__new__(Connection)
    connection.loop, connection.timeout_keep_alive_task = asyncio.get_running_loop(), None
    rung = asyncio.Event()
    now = connection.loop.time()
    connection._ring(now - 10, SHORT_S, rung.set)
    assert not rung.is_set()
    await asyncio.wait_for(rung.wait(), DEADLINE_S)
    assert connection.loop.time() >= now + SHORT_S
    rung.clear()
    connection._ring(connection.loop.time(), SHORT_S, rung.set)
    assert rung.is_set()


async def test_trailers_are_limited_and_mean_nothing(opener: Opener, engine: FakeEngine) -> None:
    engine.answer = [50]
    connect = await opener(api_key=("secret",))
    chunked = b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    late = await connect()
    late.send(chunked + b"authorization: Bearer secret\r\n\r\n")
    assert (await late.response()).startswith(b"HTTP/1.1 401 ")
    endless = await connect()
    endless.send(chunked + b"x: ")
    for _ in range(80):
        endless.send(b"x" * 5000)
    await endless.rest()


@pytest.mark.parametrize("start", [b"G", GET[:-2], b"\r\nGET /"])
async def test_headers_that_do_not_come(opener: Opener, start: bytes) -> None:
    client = await (await opener(receive_timeout=SHORT_S))()
    client.send(start)
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"headers did not come within 0.2 s" in answer


async def test_headers_that_come_byte_by_byte(opener: Opener) -> None:
    client = await (await opener(receive_timeout=SHORT_S))()
    client.send(b"GET /version HTTP/1.1\r\nx: ")
    reading = asyncio.ensure_future(client.rest())
    while not reading.done():
        client.send(b"x")
        await asyncio.wait((reading,), timeout=SHORT_S / 10)
    assert (await reading).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_does_not_come(opener: Opener, engine: FakeEngine) -> None:
    client = await (await opener(receive_timeout=SHORT_S))()
    client.send(post()[:-1])
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body did not come" in answer
    assert not engine.submits


async def test_a_body_that_breaks_off_is_no_request(opener: Opener, engine: FakeEngine) -> None:
    connect = await opener()
    client = await connect()
    whole = b'{"prompt": "x"}'
    client.send(post(whole + b"   ")[:-3])
    client.writer.close()
    engine.answer = [50]
    after = await connect()
    after.send(post(whole))
    await after.response()
    assert len(engine.submits) == 1


async def test_a_silent_connection_is_closed(opener: Opener) -> None:
    client = await (await opener(receive_timeout=SHORT_S))()
    assert await client.rest() == b""


async def test_an_answer_may_take_longer_than_the_request(opener: Opener, engine: FakeEngine) -> None:
    engine.answer, engine.pause_at = [50, 51], 1
    connect = await opener(receive_timeout=SHORT_S)
    client, slow = await connect(), await connect()
    client.send(post())
    await client.until(b"data: ")
    await slow.rest()  # the same timeout has passed for another
    engine.resume()
    await client.until(b"data: [DONE]\n\n")


async def test_connections_are_reused_beyond_the_timeout(opener: Opener) -> None:
    connect = await opener(receive_timeout=SHORT_S)
    client, slow = await connect(), await connect()
    client.send(GET)
    await client.response()
    await slow.rest()
    client.send(GET)
    assert (await client.response()).startswith(b"HTTP/1.1 200 ")


async def test_who_does_not_read_is_aborted(opener: Opener, engine: FakeEngine) -> None:
    connect = await opener(write_stall=SHORT_S)
    engine.answer, engine.pause_at = [50, 51] * 50, 99
    engine.tokens_per_message = 33
    request = {"prompt": ["x"] * 4, "n": 16, "stream": True, "logprobs": 20, "max_tokens": 100}  # 2 MB
    client = await connect(limit=1)
    client.send(post(msgspec.json.encode(request)))
    await engine.until(lambda: len(engine.aborted) == 64)


async def test_too_many_connections(opener: Opener) -> None:
    connect = await opener(max_connections=2)
    first, second = await connect(), await connect()
    for client in (first, second):
        client.send(GET)
        await client.response()
    third = await connect()
    third.send(GET)
    refused = await third.rest()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in refused
    assert b"connection: close" in refused
    first.writer.close()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            again = await connect()
            again.send(GET)
            if (await again.response()).startswith(b"HTTP/1.1 200 "):
                break
    second.send(GET)
    assert (await second.response()).startswith(b"HTTP/1.1 200 ")


async def test_pipelined_requests_are_answered_in_turn(opener: Opener, engine: FakeEngine) -> None:
    engine.answer = [50, 51]
    client = await (await opener())()
    client.send(GET + post(b'{"prompt": "x"}') + GET)
    assert b'"version"' in await client.response()
    assert b"text_completion" in await client.response()
    assert b'"version"' in await client.response()


async def test_too_many_pipelined_requests(opener: Opener, engine: FakeEngine) -> None:
    engine.answer, engine.pause_at = [50, 51], 1
    client = await (await opener())()
    client.send(post())
    await client.until(b"data: ")
    client.send(GET * 20)
    await client.rest()
    await engine.until(lambda: engine.aborted)


async def test_a_client_that_leaves_with_requests_in_the_pipeline(opener: Opener, engine: FakeEngine) -> None:
    engine.answer, engine.pause_at = [50, 51], 1
    client = await (await opener())()
    client.send(post() + GET)
    await client.until(b"data: ")
    client.writer.close()
    await engine.until(lambda: engine.aborted)


async def test_garbage_in_the_middle_of_an_answer_does_not_get_into_it(
    opener: Opener, engine: FakeEngine
) -> None:
    engine.answer, engine.pause_at = [50, 51], 1
    client = await (await opener())()
    client.send(post())
    await client.until(b"data: ")
    client.send(b"\x00\x01 garbage\r\n\r\n")
    assert b"HTTP/1.1" not in await client.rest()
    await engine.until(lambda: engine.aborted)


MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"hello\r\n\r\n",
    b"GET /version HTTP/9.9\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET version HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /version HTTP/1.1\r\nbad header\r\n\r\n",
    b"GET /version HTTP/1.1\r\nx: \x00\r\n\r\n",
    b"GET /version HTTP/1.1\r\n x: folded\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
    b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: str(data[:40]))
async def test_what_is_not_http(opener: Opener, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = await (await opener())()
    client.send(data)
    answer = await client.rest()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert not [record for record in caplog.records if record.exc_info]


async def test_other_protocols_are_not_spoken(opener: Opener) -> None:
    client = await (await opener())()
    client.send(GET[:-2] + b"connection: upgrade\r\nupgrade: h2c\r\n\r\nmore")
    assert b'"version"' in await client.rest()


async def test_half_closing_ends_it(opener: Opener, engine: FakeEngine) -> None:
    engine.answer, engine.pause_at = [50, 51], 1
    client = await (await opener())()
    client.send(post())
    await client.until(b"data: ")
    client.writer.write_eof()
    await client.rest()
    await engine.until(lambda: engine.aborted)


async def test_mutated_requests_never_break_the_server(
    opener: Opener, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine.answer = [50]
    connect = await opener(receive_timeout=SHORT_S)
    chance = random.Random(5)
    seeds = [GET, post(b'{"prompt": "x"}', b"connection: close"), *MALFORMED]
    for _ in range(20):
        clients = [await connect() for _ in range(10)]
        for client in clients:
            data = bytearray(chance.choice(seeds) + chance.choice(seeds))
            for _ in range(chance.randint(0, 4)):
                place = chance.randrange(len(data))
                data[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
            client.send(bytes(data))
            if chance.random() < 0.3:
                client.writer.close()
        for client in clients:
            if not client.writer.is_closing():
                with suppress(OSError):  # cut off already
                    client.writer.write_eof()
                answer = await client.rest()
                assert b"HTTP/1.1 5" not in answer
    assert not [record for record in caplog.records if record.exc_info]
    good = await connect()
    good.send(GET)
    assert (await good.response()).startswith(b"HTTP/1.1 200 ")


async def test_good_clients_among_slow_ones(opener: Opener, engine: FakeEngine) -> None:
    engine.answer = [50, 51]
    connect = await opener(receive_timeout=DEADLINE_S)
    slow = [await connect() for _ in range(300)]
    for client in slow:
        client.send(b"GET / HTTP/1.1\r\nx: ")
    host, port = slow[0].writer.get_extra_info("peername")
    async with httpx2.AsyncClient(base_url=f"http://{host}:{port}", timeout=DEADLINE_S) as good:
        for _ in range(10):
            assert (await good.post("/v1/completions", json={"prompt": "x"})).status_code == 200
