"""ApiClient: a server's HTTP API for the commands that ask it. Blocking, on the standard library alone.

http://host:port[/prefix]     https://…, checked against the system's certificates (SSL_CERT_FILE: others)
unix:/path/of/socket          what `tern serve --uds` listens on
"""

import http.client
import socket
import ssl
import urllib.parse
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from protocol.errors import StartupError

TIMEOUT_S = 600.0
"""Without a byte from the server."""
TROUBLE = (OSError, http.client.HTTPException)
"""What is raised when a server cannot be reached, or goes away in the middle."""


class Refusal(Exception):
    """The server answered, but not with an answer."""


class Reply(Struct, frozen=True):
    """A whole response."""

    status: int
    body: bytes
    retry_after_s: float = 0.0


class ApiClient:
    """One server, for one thread. `post` keeps its connection; each stream of `events` has one of its own,
    so that closing the iterator stops the answer."""

    def __init__(self, url: str, api_key: str = "", timeout_s: float | None = TIMEOUT_S) -> None:
        """Raises StartupError for a URL that is none."""
        self.url = url
        self._timeout_s = timeout_s
        self._uds = url.removeprefix("unix:") if url.startswith("unix:") else ""
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host, self._port = "", None
        if not self._uds and (parts.scheme not in ("http", "https") or not self._host):
            raise StartupError(f"--url {url}: expected http://host:port, https://… or unix:/path")
        self._tls = parts.scheme == "https" and not self._uds
        self._prefix = "" if self._uds else parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "User-Agent": "tern"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._kept: http.client.HTTPConnection | None = None
        self._closed = False

    def models(self) -> list[str]:
        """Names that the server answers to."""
        reply = self.get("/v1/models")
        if reply.status != 200:
            raise Refusal(f"{reply.status}: {error_text(reply.body)}")
        return [model["id"] for model in msgspec.json.decode(reply.body)["data"]]

    def get(self, path: str) -> Reply:
        return self._whole("GET", path, None)

    def post(self, path: str, body: object) -> Reply:
        """`body` as JSON; raises TROUBLE."""
        return self._whole("POST", path, msgspec.json.encode(body))

    def events(self, path: str, body: object) -> Generator[dict[str, Any], None, None]:
        """The documents of a stream as they come. Raises Refusal, also in the middle, and TROUBLE."""
        connection = self._connection()
        try:
            connection.request("POST", self._prefix + path, msgspec.json.encode(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Refusal(f"{response.status}: {error_text(response.read())}")
            for line in response:
                data = line.decode().removeprefix("data:").strip() if line.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    event = msgspec.json.decode(data)
                    if "error" in event:
                        raise Refusal(str(event["error"].get("message", event["error"])))
                    yield event
            raise Refusal("the server ended the stream before the answer was complete")
        finally:
            connection.close()

    def close(self) -> None:
        """For good. Also ends a `post` under way in another thread, which then raises TROUBLE."""
        self._closed = True
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.sock is not None:
                with suppress(OSError):
                    kept.sock.shutdown(socket.SHUT_RDWR)
            kept.close()

    def _whole(self, method: str, path: str, body: bytes | None) -> Reply:
        connection = self._kept = self._kept or self._connection()
        try:
            if connection.sock is None:
                connection.connect()
            if self._closed:  # before there was a socket that `close` could have cut
                raise ConnectionAbortedError("closed")
            connection.request(method, self._prefix + path, body, self._headers)
            response = connection.getresponse()
            return Reply(response.status, response.read(), _seconds(response.headers.get("Retry-After")))
        except TROUBLE:
            self._kept = None
            connection.close()
            raise

    def _connection(self) -> http.client.HTTPConnection:
        if self._uds:
            return _UnixConnection(self._uds, self._timeout_s)
        if self._tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(url: str, api_keys: Sequence[str], model: str) -> tuple[ApiClient, str]:
    """(a client, the model to ask: `model`, or the server's first). Raises StartupError."""
    client = ApiClient(url, (*api_keys, "")[0])
    try:
        return client, model or client.models()[0]
    except TROUBLE as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StartupError(
            f"no server answers at {url}: {reason}", hint="start one with: tern serve"
        ) from None
    except Refusal as error:
        raise StartupError(f"the server at {url} answered {error}") from None
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):
        raise StartupError(f"what answers at {url} is not a server of OpenAI's API") from None


def error_text(body: bytes) -> str:
    """The message of an error's document."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
