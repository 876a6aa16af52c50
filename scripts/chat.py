"""`tern chat`: a conversation with a running server in the terminal. Knows only its HTTP API.

/reset        forget the conversation       /system TEXT   set the system prompt and start anew
/quit, ^D     leave                         ^C             stop the answer
"""

import argparse
import http.client
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from protocol.errors import StartupError

from .flags import Parser

TIMEOUT_S = 600


class Message(Struct):
    role: str
    content: str


class Refusal(Exception):
    """The server answered, but not with an answer."""


class ChatClient:
    """One server; a new connection per question, so that closing it stops the answer."""

    def __init__(self, url: str, api_key: str, extra: Mapping[str, object]) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StartupError(f"--url {url}: expected http://host:port")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._extra = dict(extra)

    def models(self) -> list[str]:
        """Names that the server answers to."""
        connection = self._connect(self._host, self._port, timeout=TIMEOUT_S)
        try:
            response = self._request(connection, "GET", "/v1/models", None)
            return [model["id"] for model in msgspec.json.decode(response.read())["data"]]
        finally:
            connection.close()

    def answer(self, model: str, messages: Sequence[Message]) -> Iterator[str]:
        """Pieces of the answer as they come. Raises Refusal, also in the middle."""
        body = {"model": model, "messages": messages, "stream": True, **self._extra}
        connection = self._connect(self._host, self._port, timeout=TIMEOUT_S)
        try:
            response = self._request(connection, "POST", "/v1/chat/completions", msgspec.json.encode(body))
            for line in response:
                data = line.decode().removeprefix("data:").strip() if line.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield from _pieces(msgspec.json.decode(data))
            raise Refusal("the server ended the stream before the answer was complete")
        finally:
            connection.close()

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        connection.request(method, self._prefix + path, body, self._headers)
        response = connection.getresponse()
        if response.status != 200:
            raise Refusal(f"{response.status}: {_error_text(response.read())}")
        return response


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Raises StartupError for options that make no sense."""
    arguments = _parser().parse_args(argv)
    extra = {
        name: value
        for name in ("max_tokens", "temperature")
        if (value := getattr(arguments, name)) is not None
    }
    client = ChatClient(
        arguments.url, arguments.api_key or environ.get("TERN_API_KEY", "").partition(",")[0], extra
    )
    try:
        model = arguments.model or client.models()[0]
    except OSError as error:
        hint = "start one with: tern serve"
        raise StartupError(
            f"no server answers at {arguments.url}: {error.strerror or error}", hint=hint
        ) from None
    except Refusal as error:
        raise StartupError(f"the server at {arguments.url} answered {error}") from None
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing, where the platform has it
    print(f"{model} at {arguments.url}. /reset, /system TEXT, /quit; Ctrl-C stops an answer.")
    return converse(client, model, arguments.system)


def converse(client: ChatClient, model: str, system: str) -> int:
    """Read, ask, print, until the end of the input."""
    history = _opening(system)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print()
            continue
        command, _, rest = line.partition(" ")
        match command:
            case "":
                continue
            case "/quit" | "/exit":
                return 0
            case "/reset":
                history = _opening(system)
            case "/system":
                system = rest.strip()
                history = _opening(system)
            case _ if command.startswith("/"):
                print(f"{command} is none of /reset, /system TEXT, /quit")
            case _:
                _exchange(client, model, history, line)


def _exchange(client: ChatClient, model: str, history: list[Message], question: str) -> None:
    """Ask; what was answered joins the history, and a question that failed leaves it."""
    history.append(Message("user", question))
    answer = ""
    try:
        for piece in client.answer(model, history):
            answer += piece
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" (stopped)")
    except (OSError, http.client.HTTPException, Refusal, msgspec.DecodeError) as error:
        print(f"\n{error}", file=sys.stderr)
        history.pop()
        return
    history.append(Message("assistant", answer))


def _opening(system: str) -> list[Message]:
    return [Message("system", system)] if system else []


def _pieces(event: dict[str, Any]) -> Iterator[str]:
    if "error" in event:
        raise Refusal(str(event["error"].get("message", event["error"])))
    for choice in event.get("choices", ()):
        if piece := choice["delta"].get("content"):
            yield piece


def _error_text(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="tern chat", description="Talk to a running server.", allow_abbrev=False)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--model", default="", help="one of its models (default: the first)")
    parser.add_argument("--api-key", default="", help="default: TERN_API_KEY")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of each answer (default: the server's)")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy (default: the server's)")
    return parser
