"""HttpMutator: requests as nobody should send them. Seeded; knows no server, only what HTTP and JSON allow.

Each is bytes for one connection: a mangled request line, headers that trick, chunks and lengths that lie,
pipelines, bodies of any JSON in every field, bodies that are not JSON, and mutations of all of these.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, list[str]]
"""Names of the fields of each POST path's body."""

METHODS = [
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PRI",
    "get",
    "G\x00T",
    "",
    "X" * 300,
]
VERSIONS = [
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/2.0",
    "HTTP/0.9",
    "HTTP/1.1 ",
    "http/1.1",
    "HTTP/1.",
    "HTTP/11.1",
    "",
    "\x00",
]
ENDS = ["\r\n", "\n", "\r", "\r\r\n", "\x00\r\n", ""]
LENGTHS = [
    "-1",
    "0",
    "1",
    "5",
    "99999",
    "+5",
    "5, 5",
    "0x5",
    "5 5",
    "18446744073709551616",
    "1e1",
    "",
    "٣",
    "NaN",
]
CODINGS = [
    "chunked",
    "Chunked",
    "chunked, chunked",
    "gzip, chunked",
    "chunked, identity",
    "identity",
    "",
    "\x0bchunked",
]
SIZES = [
    "0",
    "1",
    "5",
    "05",
    "5;x=y",
    "-1",
    "ffffffffffffffff",
    "10000000000000000",
    "g",
    "",
    " 5",
    "5 ",
    "0x5",
    "5\n",
]
NUMBERS = [0, 1, -1, 2, 16, 17, 1 << 31, -(1 << 63), 1 << 64, 10**30, 0.5, -0.0, 1e308, 1e-320, 101, 0.1]
TEXTS = [
    "",
    "x",
    "null",
    "1",
    "\x00",
    "\u2028",
    "\ud83d\ude00",
    "é" * 300,
    "x" * 5000,
    "../../etc/passwd",
    "{{7*7}}",
    "<|end|>",
]
HEADERS = [
    "host: x/health?", "host: a\r\nhost: b", "connection: close", "connection: upgrade\r\nupgrade: websocket",
    "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c", "expect: 100-continue", "expect: nothing",
    "authorization: Bearer x", "authorization:", "x-request-id: \x01", "x-request-id: " + "x" * 500,
    "x: " + "v" * 70_000, "x y: z", ": z", "x", " folded: x", "x: \x00", "x: \xff", "content-type: text/xml",
    "content-encoding: gzip", "accept-encoding: gzip;q=NaN", "range: bytes=0-", "cookie: " + "a=b;" * 500,
    "idempotency-key: ", "idempotency-key: é", "last-event-id: 5", "x-request-timeout: -1",
    "x-request-timeout: NaN", "x-request-timeout: 0", "trailer: content-length",
    "transfer-encoding : chunked", "content-length: 3",
    *["x-h: y\r\n" * 200],
]  # fmt: skip
"""Some end their line, so that the next is empty."""


class HttpMutator:
    """`next()` is the next payload."""

    def __init__(self, seed: str, paths: list[str], fields: Fields) -> None:
        self._chance = random.Random(seed)
        self._paths = paths
        self._fields = fields
        self._kinds: list[Callable[[], bytes]] = [
            self._line, self._tricky, self._chunks, self._length, self._pipeline, self._noise,
            self._typed, self._typed, self._typed, self._typed, self._broken, self._broken,
            self._cut, self._mutated,
        ]  # fmt: skip

    def next(self) -> bytes:
        return self._chance.choice(self._kinds)()

    # ── not quite HTTP ──────────────────────────────────────────────────────────────────────────

    def _line(self) -> bytes:
        pick = self._chance.choice
        path = pick(
            [
                *self._paths,
                "*",
                "",
                "//",
                "/" + "a" * 9000,
                "/%00",
                "/%zz",
                "/\xff",
                "http://x/version",
                "/?#?",
                "/v1/models/%2e%2e",
            ]
        )
        space = pick([" ", " ", "  ", "\t", ""])
        line = f"{pick(METHODS)}{space}{path}{space}{pick(VERSIONS)}{pick(ENDS)}"
        return (line + "host: x\r\n\r\n").encode("latin-1")

    def _tricky(self) -> bytes:
        headers = "\r\n".join(self._chance.choices(HEADERS, k=self._chance.randint(1, 3)))
        return self._request(self._body(), headers)

    def _chunks(self) -> bytes:
        pick = self._chance.choice
        body = b"".join(
            f"{pick(SIZES)}{pick(ENDS[:2])}{'hello'[: pick([0, 1, 5])]}{pick(ENDS)}".encode()
            for _ in range(self._chance.randint(0, 4))
        )
        end = pick([b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\n" + b"t: v\r\n" * 300 + b"\r\n", b""])
        head = f"POST {pick(self._paths)} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: {pick(CODINGS)}\r\n\r\n"
        return head.encode("latin-1") + body + end

    def _length(self) -> bytes:
        pick = self._chance.choice
        lengths = "".join(f"content-length: {pick(LENGTHS)}\r\n" for _ in range(pick([1, 1, 2])))
        head = f"{pick(['POST', 'GET'])} {pick(self._paths)} HTTP/1.1\r\nhost: x\r\n{lengths}\r\n"
        return head.encode() + self._body()[: pick([0, 1, 5, 10_000])]

    def _pipeline(self) -> bytes:
        pick = self._chance.choice
        parts = [
            self._request(self._body()),
            b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\r\n",
            b"GET /nothing HTTP/1.1\r\n\r\n",
        ]
        return b"".join(pick(parts) for _ in range(self._chance.randint(2, 20)))

    def _noise(self) -> bytes:
        return self._chance.randbytes(self._chance.randint(0, 300)) + self._chance.choice([b"", b"\r\n\r\n"])

    # ── HTTP, with any JSON or none ─────────────────────────────────────────────────────────────

    def _typed(self) -> bytes:
        """Some fields of any JSON, the others as they should be."""
        path = self._chance.choice(list(self._fields))
        body: dict[str, Any] = {"prompt": "x", "max_tokens": 3} if "completions" in path else {}
        body |= {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {}
        for name in self._chance.choices(self._fields[path], k=self._chance.randint(1, 3)):
            body[name] = self._value(3)
        return self._request(json.dumps(body).encode(), path=path)

    def _broken(self) -> bytes:
        depth = self._chance.choice([100, 2000, 100_000])
        return self._request(self._chance.choice([
            b"[" * depth, b'{"prompt":' * depth, b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}",
            b'{"messages": [{"role": "user", "tool_calls": ' + b'[{"x":' * depth,
            b'{"prompt": "\xff\xfe"}', b'{"prompt": "\xc0\x80"}', b'{"prompt": "\\ud800"}',
            b'{"prompt": "\\u0000"}', b"{" + b'"a":1,' * 5000 + b'"b":2}',
            b'\xef\xbb\xbf{"prompt": "x"}', '{"prompt": "x"}'.encode("utf-16"), b'{"prompt": "\x00"}',
            b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", b'{"prompt": "x", "temperature": 1e999}',
            b'{"prompt": "x", "temperature": -0}', b'{"prompt": "x", "seed": NaN}', b'{"prompt": "x",}', b"",
            b'{"prompt": "x", "prompt": 5}', b"[]", b"null", b'"x"', b"5", b"{}",
        ]))  # fmt: skip

    def _cut(self) -> bytes:
        whole = self._request(self._body())
        return whole[: self._chance.randrange(len(whole))]

    def _mutated(self) -> bytes:
        data = bytearray(self._chance.choice([self._line, self._tricky, self._chunks, self._pipeline])())
        for _ in range(self._chance.randint(1, 5)):
            place = self._chance.randrange(len(data) + 1)
            data[place : place + self._chance.randint(0, 3)] = self._chance.randbytes(
                self._chance.randint(0, 3)
            )
        return bytes(data)

    def _body(self) -> bytes:
        return b'{"prompt": "x", "max_tokens": 3, "stream": %b}' % self._chance.choice([b"true", b"false"])

    def _request(self, body: bytes, headers: str = "x: y", path: str = "") -> bytes:
        path = path or self._chance.choice(list(self._fields))
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n\r\n"
        return head.encode("latin-1", "replace") + body

    def _value(self, depth: int) -> Any:
        pick = self._chance.choice
        match self._chance.randrange(9 if depth else 6):
            case 0 | 1:
                return pick(NUMBERS)
            case 2 | 3:
                return pick(TEXTS)
            case 4 | 5:
                return pick([None, True, False])
            case 6:
                return [self._value(depth - 1) for _ in range(pick([0, 1, 2, 40]))]
            case 7:
                return {pick(TEXTS)[:50]: self._value(depth - 1) for _ in range(pick([0, 1, 3]))}
            case _:
                names = ["role", "content", "type", "text", "name", "tool_calls", "function", "arguments"]
                return {name: self._value(depth - 1) for name in names if pick([True, False])}


def is_head(payload: bytes) -> bool:
    """Whether its first response has no body."""
    return re.match(rb"(\r?\n)*HEAD ", payload) is not None
