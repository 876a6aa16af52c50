"""HttpServer on the event loop that it runs on in production, which accepts while it polls."""

import asyncio
import socket

import uvloop
from starlette.types import Receive, Scope, Send

from frontend.server import HttpServer
from protocol.frontend_options import FrontendOptions
from tests.frontend.fake_engine import DEADLINE_S


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


async def retire_as_someone_connects() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    told, tell = socket.socketpair()
    with listener.dup() as shared, told, tell:
        listening = asyncio.Event()
        server = HttpServer(hello, FrontendOptions(), listener, listening.set)
        running = asyncio.ensure_future(server.run())
        await listening.wait()
        loop = asyncio.get_running_loop()
        loop.add_reader(told, lambda: (loop.remove_reader(told), asyncio.ensure_future(server.retire())))
        await asyncio.sleep(0)
        tell.send(b"x")
        late = socket.create_connection(shared.getsockname())  # the loop has not run: it sees both at once
        late.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=late)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        try:
            assert (await reader.read()).endswith(b"hello")  # answered, and closed
        finally:
            writer.close()
            await running


def test_who_connects_at_the_moment_of_retiring_is_served_and_does_not_stay() -> None:
    async def limited() -> None:
        await asyncio.wait_for(retire_as_someone_connects(), DEADLINE_S)

    uvloop.run(limited())
