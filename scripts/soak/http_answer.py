"""HttpAnswer: one /v1/completions request over a connection of its own, as far as it got.

Knows how to go on with a stream that broke (Idempotency-Key, Last-Event-ID), and not whether it should.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

MOST_LINE_BYTES = 1 << 20


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Document(msgspec.Struct):
    """A whole answer, one event of a stream, or an error."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Document).decode


class Broken(Exception):
    """The connection ended before the answer did."""


@dataclass
class HttpAnswer:
    """What has come so far, over one connection or several."""

    text: str = ""
    finish_reason: str = ""
    num_tokens: int = 0
    error: str = ""
    """What the server answered instead."""
    done: bool = False
    num_events: int = 0
    last_id: str = ""

    async def ask(
        self, host: str, port: int, body: dict[str, Any], key: str = "", most_events: int = 0
    ) -> None:
        """Ask, or with a key go on. After `most_events` hang up, as an impatient client. Raises Broken."""
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=MOST_LINE_BYTES)
        except OSError as error:
            raise Broken(f"connecting: {error}") from None
        try:
            writer.write(self._request(body, key))
            await self._read(reader, most_events)
        except (OSError, EOFError) as error:
            raise Broken(f"{type(error).__name__} after {self.num_events} events") from None
        finally:
            writer.transport.abort()

    def _request(self, body: dict[str, Any], key: str) -> bytes:
        content = msgspec.json.encode(body)
        head = ["POST /v1/completions HTTP/1.1", "Host: soak", "Content-Type: application/json"]
        head += [f"Content-Length: {len(content)}", "Connection: close"]
        if key:
            head.append(f"Idempotency-Key: {key}")
        if key and self.last_id:
            head.append(f"Last-Event-ID: {self.last_id}")
        return ("\r\n".join(head) + "\r\n\r\n").encode() + content

    async def _read(self, reader: asyncio.StreamReader, most_events: int) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split()[1])
        if "transfer-encoding: chunked" not in head:
            length = int(head.partition("content-length:")[2].split()[0])
            self._take(await reader.readexactly(length), status)
            self.done = True
            return
        pending = b""
        while size := int((await reader.readuntil(b"\r\n")), 16):
            pending += (await reader.readexactly(size + 2))[:size]
            *events, pending = pending.split(b"\n\n")
            for event in events:
                self._on_event(event, status)
            if most_events and self.num_events >= most_events:
                return
        self.done = self.done and not pending

    def _on_event(self, event: bytes, status: int) -> None:
        for line in event.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"id":
                self.last_id = value.decode()
            elif value == b"[DONE]":
                self.done = True
            elif name == b"data":
                self.num_events += 1
                self._take(value, status)

    def _take(self, data: bytes, status: int) -> None:
        document = _decode(data)
        if status != 200 or document.error is not None:
            self.error = f"{status}: {document.error}"
        for choice in document.choices:
            self.text += choice.text
            self.finish_reason = choice.finish_reason or self.finish_reason
        if document.usage is not None:
            self.num_tokens = document.usage.completion_tokens
