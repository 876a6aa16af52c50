"""A load generator that costs little: raw sockets, one small protocol object per stream.

It asks for streamed completions of a fixed length and notes when each chunk arrives. Knows nothing of
what is measured with it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import msgspec

_ENDS = b"data: [DONE]"


@dataclass
class Stream:
    """One finished stream; times are seconds since the request was sent."""

    began: float = 0.0
    """When the request was sent, time.perf_counter()."""
    arrivals: list[float] = field(default_factory=list)
    num_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between chunks."""
        return [late - early for early, late in zip(self.arrivals, self.arrivals[1:], strict=False)]


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self.request = request
        self.stream = Stream()
        self.done: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one without saying so
        self.stream.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if b"data: {" in data:
            self.stream.arrivals.append(time.perf_counter() - self.stream.began)
        self.tail = (self.tail + data)[-1024:]
        if _ENDS in self.tail:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        _, _, usage = self.tail.rpartition(b'"completion_tokens":')
        digits = usage.lstrip()[:9].split(b",")[0].split(b"}")[0]
        if _ENDS in self.tail and digits.isdigit():
            self.stream.num_tokens = int(digits)
        else:
            self.stream.error = self.tail[-300:].decode(errors="replace") or repr(error)
        if not self.done.done():
            self.done.set_result(self.stream)


def completion_request(prompt: Sequence[int] | str, max_tokens: int, **extra: object) -> bytes:
    """The bytes of a streamed /v1/completions request that runs to its full length."""
    body = msgspec.json.encode(
        {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        | extra
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def one(host: str, port: int, request: bytes) -> Stream:
    """Send one request and follow its stream to the end; cancelled, hang up."""
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(lambda: _Connection(request), host, port)
    try:
        return await connection.done
    finally:
        transport.close()


async def together(host: str, port: int, requests: Sequence[bytes]) -> tuple[list[Stream], float]:
    """All requests at once; (streams, seconds from the first byte sent to the last received)."""
    began = time.perf_counter()
    streams = await asyncio.gather(*(one(host, port, request) for request in requests))
    seconds = time.perf_counter() - began
    if failed := [stream.error for stream in streams if stream.error]:
        raise RuntimeError(f"{len(failed)} of {len(streams)} streams failed; the first: {failed[0]}")
    return streams, seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
