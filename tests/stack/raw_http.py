"""RawConnection: a client that says exactly what it is told to, and reads exactly what HTTP/1.1 allows.

Strict on purpose: an answer that a forgiving client would still understand is an AssertionError here.
"""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from tests.conftest import DEADLINE_S

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([^\r\n\x00]*)\r\n")
_RESET = struct.pack("ii", 1, 0)


class Response(NamedTuple):
    """`body` of a stream is what its chunks held."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str | None:
        """Of an error."""
        code: str | None = self.json["error"]["code"]
        return code


class Event(NamedTuple):
    """One server-sent event; `data` is JSON, or "[DONE]"."""

    id: str
    data: Any


class RawConnection:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, stack: "Stack", receive_buffer: int = 0) -> Self:
        """`receive_buffer`: bytes that the kernel keeps for who does not read; 0: its own choice."""
        host, port = stack.base_url.removeprefix("http://").split(":")
        client = socket.socket()
        client.setblocking(False)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
            return cls(*await asyncio.open_connection(sock=client, limit=receive_buffer or 1 << 20))
        except BaseException:
            client.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def local_port(self) -> int:
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    # ── saying ──────────────────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def send_all(self, data: bytes) -> None:
        """Until the kernel has it. Raises ConnectionError when nobody listens any more."""
        self._writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            await self._writer.drain()

    def half_close(self) -> None:
        self._writer.write_eof()

    async def close(self) -> None:
        """With a FIN, or a RST if there is something left to read."""
        self._writer.transport.abort()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def reset(self) -> None:
        """With a RST, whatever is left."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await self.close()

    # ── reading; all raise EOFError or ConnectionError at the connection's end ──────────────────

    async def response(self, *, has_body: bool = True) -> Response:
        """The next whole one. `has_body`: no for HEAD."""
        status, headers = await self.head()
        if status < 200:
            return await self.response(has_body=has_body)
        if not has_body or status in (204, 304):
            return Response(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers, headers
            return Response(status, headers, b"".join([chunk async for chunk in self.chunks()]))
        return Response(status, headers, await self._exactly(int(headers["content-length"])))

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        line = await self._line()
        found = _STATUS_LINE.fullmatch(line)
        assert found is not None, line
        headers: dict[str, str] = {}
        while (line := await self._line()) != b"\r\n":
            field = _HEADER_LINE.fullmatch(line)
            assert field is not None, line
            name = field[1].decode().lower()
            assert name not in headers, f"{name} twice"
            headers[name] = field[2].decode("latin-1")
        return int(found[1]), headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Of a chunked body, until its end."""
        while size := int(await self._line(), 16):
            chunk = await self._exactly(size)
            assert await self._exactly(2) == b"\r\n"
            yield chunk
        assert await self._line() == b"\r\n"

    async def events(self) -> AsyncIterator[Event]:
        """Of a stream, until its end; what comes after its head."""
        text = b""
        async for chunk in self.chunks():
            *whole, text = (text + chunk).split(b"\n\n")
            for lines in whole:
                if lines.startswith(b":"):  # a comment: it is still alive
                    continue
                fields = dict(line.split(": ", 1) for line in lines.decode().splitlines())
                data = fields["data"]
                yield Event(fields.get("id", ""), data if data == "[DONE]" else msgspec.json.decode(data))
        assert not text, text

    async def rest(self) -> bytes:
        """All bytes until the server closes."""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                while part := await self._reader.read(1 << 16):
                    parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)

    async def some(self, count: int) -> bytes:
        """At most `count` bytes, at least one."""
        async with asyncio.timeout(DEADLINE_S):
            data = await self._reader.read(count)
        if not data:
            raise EOFError
        return data

    async def _line(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readuntil(b"\n")

    async def _exactly(self, count: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readexactly(count)


def request(method: str, path: str, body: bytes | None = None, /, **headers: str) -> bytes:
    """Bytes of a well-formed request; header names with _ for -."""
    fields = {"host": "tern", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body is not None:
        fields |= {"content-type": "application/json", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


def completion(path: str = "/v1/completions", headers: dict[str, str] | None = None, **fields: Any) -> bytes:
    """Bytes of a request to generate; greedy to the full length unless told otherwise."""
    body = {"model": "tiny", "temperature": 0, "ignore_eos": True, **fields}
    return request("POST", path, msgspec.json.encode(body), **(headers or {}))


async def ask(stack: "Stack", data: bytes) -> Response:
    """One request on a connection of its own."""
    async with await RawConnection.open(stack) as connection:
        connection.send(data)
        return await connection.response()
