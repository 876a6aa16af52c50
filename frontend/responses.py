"""What goes back over HTTP: a JSON document, or an error. One table from error to response per shape.

OpenAI's   {"error": {"message": …, "type": …, "param": … | null, "code": … | null}}
"""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
from msgspec import Struct
from starlette.types import Send

from protocol.errors import TernError

Header = tuple[bytes, bytes]

EVENT_STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""`type` by status; any other is a server_error."""

RETRY_AFTER_S = {429: 2, 503: 1}
"""If nothing better is known. Clients of OpenAI's libraries wait so long and try again, twice by default."""
MOST_RETRY_AFTER_S = 60


class ErrorDetail(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct, frozen=True):
    """Also the last event of a stream that cannot go on: the one shape that every client raises on."""

    error: ErrorDetail


def error_body(error: TernError, status: int | None = None) -> bytes:
    """JSON of an error."""
    kind = _TYPES.get(status or error.status, "server_error")
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.message, kind, error.param, error.code)))


def error_headers(error: TernError) -> list[Header]:
    """What an error's response says besides its body."""
    if error.retryable:
        known = error.retry_after_s
        seconds = RETRY_AFTER_S.get(error.status, 1) if known is None else math.ceil(known)
        return [(b"retry-after", b"%d" % min(max(seconds, 1), MOST_RETRY_AFTER_S))]
    if error.status >= 500 or error.status == 409:  # clients retry on these, and it would fail again
        return [(b"x-should-retry", b"false")]
    return [(b"www-authenticate", b"Bearer")] if error.status == 401 else []


class ErrorShape(Protocol):
    """How errors look on some paths."""

    def status(self, error: TernError) -> int: ...

    def body(self, error: TernError, request_id: str) -> bytes:
        """JSON of a whole response."""
        ...

    def last_event(self, error: TernError, request_id: str) -> bytes:
        """Of a stream that cannot go on, and whose endpoint has no last words of its own."""
        ...


class OpenAIErrors:
    """Everywhere, unless a path has another shape."""

    def status(self, error: TernError) -> int:
        return error.status

    def body(self, error: TernError, request_id: str) -> bytes:
        return error_body(error)

    def last_event(self, error: TernError, request_id: str) -> bytes:
        return b"data: " + error_body(error) + b"\n\n"


LAST_WORDS = "last_words"
"""Where a request's `state` has its endpoint's own LastWords, while it streams."""
LastWords = Callable[[TernError, str], bytes]
"""Of an error, and the request's id."""


async def send_error(
    send: Send, error: TernError, shape: ErrorShape, request_id: str, headers: Iterable[Header] = ()
) -> None:
    """An error as a whole response."""
    body = shape.body(error, request_id)
    await send_body(send, body, shape.status(error), [*headers, *error_headers(error)])


async def send_json(send: Send, document: object, status: int = 200, headers: Iterable[Header] = ()) -> None:
    """A Struct, list or dict as a whole response."""
    await send_body(send, msgspec.json.encode(document), status, headers)


async def send_body(
    send: Send,
    body: bytes,
    status: int = 200,
    headers: Iterable[Header] = (),
    content_type: bytes = b"application/json",
) -> None:
    """Bytes as a whole response."""
    length = (b"content-length", str(len(body)).encode())
    start = [(b"content-type", content_type), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
