"""HTTP from the outside, at its worst: memory stays flat, and there is a limit to connections."""

import resource
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

if TYPE_CHECKING:
    from tests.stack.conftest import Serve, Stack

DEADLINE_S = 60.0
MIB = 1 << 20
GROWTH = 32 * MIB
"""Far less than what is sent, far more than what buffers take."""


def connect(stack: "Stack") -> socket.socket:
    host, port = stack.base_url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def flood(connection: socket.socket, start: bytes, filler: bytes, num_bytes: int) -> bytes:
    """Send, at most until the other side has had enough: its answer, unless a reset overtakes it."""
    with suppress(ConnectionError):
        connection.sendall(start)
        for _ in range(0, num_bytes, len(filler)):
            connection.sendall(filler)
    with suppress(ConnectionError):
        return connection.recv(1 << 16)
    return b""


def memory(stack: "Stack") -> int:
    """Bytes of the frontend that are resident."""
    pages = int(Path(f"/proc/{stack.pids['frontend'][0]}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def ask(stack: "Stack") -> None:
    with httpx2.Client(base_url=stack.base_url, timeout=DEADLINE_S) as client:
        body = {"prompt": "Tern", "max_tokens": 8}
        assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("start", "filler", "status"),
    [
        (b"GET / HTTP/1.1\r\nx: ", b"x" * MIB, b"431"),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 10_000, b"431"),
        (b"GET /", b"x" * MIB, b"431"),
        (
            b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"100000\r\n" + b"x" * MIB + b"\r\n",
            b"413",
        ),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", b"x" * MIB, b"413"),
    ],
    ids=["value", "names", "path", "chunked", "declared"],
)
def test_too_much(server: "Stack", start: bytes, filler: bytes, status: bytes) -> None:
    ask(server)
    before = memory(server)
    with connect(server) as connection:
        answer = flood(connection, start, filler, 64 * MIB)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 " + status)
    assert memory(server) - before < GROWTH
    ask(server)


def test_more_connections_than_allowed(serve: "Serve") -> None:
    stack = serve("--max-connections", "20")
    with ExitStack() as open_connections:
        full = [open_connections.enter_context(connect(stack)) for _ in range(20)]
        for connection in full:
            connection.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        with connect(stack) as one_more:
            one_more.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = one_more.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
    stack.wait_ready()
    ask(stack)
