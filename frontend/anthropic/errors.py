"""Errors in Anthropic's shape, on the paths of its API.

{"type": "error", "error": {"type": …, "message": …, "param": …, "code": …}, "request_id": …}

`param` and `code` are ours, and the same as elsewhere. A server that takes nothing now (503) is 529 here,
which is what these clients know as overloaded.
"""

import msgspec
from msgspec import Struct

from protocol.errors import ContextLengthExceeded, TernError

PATH = "/v1/messages"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By status; any other is an api_error."""
_STATUS = {503: 529}


class AnthropicErrorDetail(Struct, frozen=True):
    type: str
    message: str
    param: str | None
    code: str


class AnthropicError(Struct, frozen=True, tag="error"):
    error: AnthropicErrorDetail
    request_id: str | None


class AnthropicErrors:
    """An ErrorShape."""

    def status(self, error: TernError) -> int:
        return _STATUS.get(error.status, error.status)

    def body(self, error: TernError, request_id: str) -> bytes:
        kind = _TYPES.get(self.status(error), "api_error")
        message = error.message
        if isinstance(error, ContextLengthExceeded):
            message = f"prompt is too long: {message}"  # agents compact their history when they read this
        detail = AnthropicErrorDetail(kind, message, error.param, error.code)
        return msgspec.json.encode(AnthropicError(detail, request_id or None))

    def last_event(self, error: TernError, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.body(error, request_id) + b"\n\n"
