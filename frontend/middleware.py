"""What every request passes: a request id, the translation of errors, the key check, the body limit.

    (RootPath) ─ (CORS) ─ Edge ─ (Rebinding) ─ CrossSite ─ Authentication ─ BodyLimit ─ routes

Pure ASGI throughout, because wrappers that run the app in a task of their own hide disconnects from it.
Only `Edge` wraps `send`, with a plain function: a streamed token passes it in 0.1 µs.
"""

import hashlib
import hmac
import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Collection, Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import BodyTooLarge, InternalError, RequestError, TernError, Unauthorized

from .request_log import Entry, Ledger
from .responses import LAST_WORDS, ErrorShape, LastWords, OpenAIErrors, send_error

log = logging.getLogger("tern.frontend")

PUBLIC_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/version"})
"""Open without a key. Everything else needs one, whatever it is: a new route is safe by default."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RouteNotFound(RequestError):
    """No such path."""

    code = "route_not_found"
    status = 404


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class Edge:
    """Outermost: gives each request an id, and turns what the app raises into a response or a last event.

    `shapes`: paths under which errors look different.
    """

    def __init__(self, app: ASGIApp, shapes: Mapping[str, ErrorShape], ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger
        self._shapes = shapes
        self._default = OpenAIErrors()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = _request_id(scope["headers"])
        with self._ledger.entry(request_id, scope["method"], scope["path"]) as entry:
            await self._answer(scope, receive, send, request_id, entry)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, request_id: bytes, entry: Entry
    ) -> None:
        def labelled(message: Message) -> Awaitable[None]:
            if not entry.status:
                entry.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            return send(message)

        async def report(error: TernError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
            """Before the response: the error. Within a stream: its last events, and the connection is cut off
            (the response is never completed), so that no client takes what it has for the whole answer."""
            shape, label = self._shape(scope["path"]), request_id.decode()
            if not entry.status:
                await send_error(labelled, error, shape, label, headers)
                return
            last_words: LastWords | None = scope.get("state", {}).get(LAST_WORDS)
            events = last_words(error, label) if last_words is not None else shape.last_event(error, label)
            await labelled({"type": "http.response.body", "body": events, "more_body": True})

        try:
            await self._app(scope, receive, labelled)
        except TernError as error:
            await report(error)
        except HTTPException as error:  # the router's
            headers = [(k.encode(), v.encode()) for k, v in (error.headers or {}).items()]
            await report(_routing_error(error, scope), headers)
        except Exception as error:  # a defect of ours; what it says may quote the prompt
            where = "".join(traceback.format_tb(error.__traceback__))
            kind, label = type(error).__name__, request_id.decode()
            log.error("request %s: %s %r: %s\n%s", label, scope["method"], scope["path"], kind, where)
            log.debug("request %s", label, exc_info=error)
            await report(InternalError("internal error; the server's log has the cause"))

    def _shape(self, path: str) -> ErrorShape:
        for prefix, shape in self._shapes.items():
            if path == prefix or path.startswith(prefix + "/"):
                return shape
        return self._default


class RootPath:
    """Takes off the prefix under which a proxy passes requests on; without it, they are answered too."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{self._root_path}/"):
            scope["path"] = scope["path"][len(self._root_path) :] or "/"
        await self._app(scope, receive, send)


class Authentication:
    """Refuses requests without one of the keys. Keeps only hashes, and compares them in constant time."""

    def __init__(
        self, app: ASGIApp, keys: Iterable[str], public_paths: Collection[str] = PUBLIC_PATHS
    ) -> None:
        self._app = app
        self._public_paths = public_paths
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hashes and scope["path"] not in self._public_paths:
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str:
        """A short name for the key: tenants share neither turns nor cached prefixes."""
        given = _header(scope, b"authorization")
        if given is None and (bare := _header(scope, b"x-api-key")) is not None:
            given = b"Bearer " + bare
        scheme, _, key = (given or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, one) for one in self._hashes]
        if scheme.lower() != b"bearer" or not any(known):
            reason = "is not one of this server's" if given else "is missing"
            how = "'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise Unauthorized(f"the API key {reason}; send it as {how}")
        return digest.hex()[:16]


class BodyLimit:
    """Refuses bodies over the limit, by their declared length or as soon as more has come."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self._limit:
            raise self._error(f"{int(declared)} bytes")
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit:
                    raise self._error(f"more than {self._limit} bytes")
            return message

        await self._app(scope, limited, send)

    def _error(self, size: str) -> BodyTooLarge:
        return BodyTooLarge(f"the body has {size}; the limit is {self._limit} (--max-body-bytes)")


def _header(scope: Scope, name: bytes) -> bytes | None:
    """The first of that name."""
    found: bytes | None = next((value for key, value in scope["headers"] if key == name), None)
    return found


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's own, if it is fit for a header, or a new one."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()


def _routing_error(error: HTTPException, scope: Scope) -> TernError:
    if error.status_code == 405:
        return MethodNotAllowed(f"{scope['method']} is not allowed on {scope['path']}")
    return RouteNotFound(f"there is no {scope['method']} {scope['path']} here")
