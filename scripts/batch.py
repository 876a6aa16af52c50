"""A batch: lines of prompts, and the lines that answer them. Knows files and documents, and no server.

In, one JSON document a line, of any of these kinds:

    "a prompt"                                          {"prompt": …, "max_tokens": 9, "id": "a"}
    {"messages": […], "temperature": 0}                 {"custom_id": …, "method": "POST", "url": "/v1/…",
                                                         "body": {…}}          OpenAI's batch file

Out, line n answers line n: {"id", "request", "text", "finish_reason", "usage"} or {"id", "request",
"error"}; for OpenAI's lines, OpenAI's: {"id", "custom_id", "response", "error"}. `request` (`id` there) is
a digest of what was asked, by which a later run finds out whether an output belongs to its input.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from protocol.errors import StartupError

from .api_client import Reply
from .asking import Question

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_DIGEST_CHARS = 24


class Mistake(Exception):
    """A line that cannot be asked."""


class Line(Struct, frozen=True):
    """One line of the input."""

    id: str | int
    """Its own, or its number from 1."""
    digest: str
    question: Question | None = None
    """None: it has a mistake."""
    mistake: str = ""
    is_openai: bool = False


class Asked(Struct):
    """A line as it is written; what it has besides are fields of the request."""

    id: str | int | None = None
    custom_id: str | None = None
    method: str = "POST"
    url: str = ""
    body: dict[str, Any] | None = None


def read_lines(path: str, defaults: Mapping[str, Any]) -> Iterator[Line]:
    """Lines that are empty are skipped. `defaults` are for fields that a line does not have."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield parse_line(number, raw, defaults)


def parse_line(number: int, raw: bytes, defaults: Mapping[str, Any]) -> Line:
    """Never raises: a mistake is part of the line."""
    own = Asked()
    is_openai = False
    try:
        document = msgspec.json.decode(raw)
        if isinstance(document, str):
            document = {"prompt": document}
        if not isinstance(document, dict):
            raise Mistake("expected a text or an object")
        own = msgspec.convert({k: v for k, v in document.items() if k in Asked.__struct_fields__}, Asked)
        is_openai = own.custom_id is not None or own.body is not None
        question = _openai_question(own, defaults) if is_openai else _question(document, defaults)
    except (Mistake, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        digest = hashlib.sha256(raw.strip()).hexdigest()[:_DIGEST_CHARS]
        return Line(_id(own, number), digest, mistake=f"line {number}: {error}", is_openai=is_openai)
    content = msgspec.json.encode([question.path, question.body], order="sorted")
    digest = hashlib.sha256(content).hexdigest()[:_DIGEST_CHARS]
    return Line(_id(own, number), digest, question, is_openai=is_openai)


def answer_line(line: Line, reply: Reply | None) -> bytes:
    """The line of the output. `reply` is None for a mistake."""
    body: Any = None
    error: Any = None
    if reply is None:
        error = {"message": line.mistake, "type": "invalid_request_error", "param": None, "code": None}
    else:
        try:
            body = msgspec.json.decode(reply.body)
        except msgspec.DecodeError:
            error = {"message": f"the server answered {reply.status} and no JSON", "code": None}
        if error is None and reply.status != 200:
            error = body.get("error", body) if isinstance(body, dict) else body
    if line.is_openai:
        response = None if reply is None or body is None else {"status_code": reply.status, "body": body}
        own = {"id": f"batch_req_{line.digest}", "custom_id": line.id, "response": response, "error": error}
    else:
        own = {"id": line.id, "request": line.digest}
        own |= {"error": error} if error is not None else _answer(body)
    return msgspec.json.encode(own) + b"\n"


class _Answered(Struct, frozen=True):
    """What a line of the output says of its question."""

    id: str | int = ""
    request: str = ""
    error: Any = None
    """Whatever the server's kind makes of it."""

    @classmethod
    def of(cls, raw: bytes) -> "_Answered":
        try:
            return msgspec.json.decode(raw, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls()

    @property
    def digest(self) -> str:
        return self.request or str(self.id).removeprefix("batch_req_")


class Output:
    """The file of answers, which only grows, by one whole line at a time. Locked while it is open."""

    def __init__(self, path: str, *, overwrite: bool) -> None:
        """Raises StartupError."""
        self.path = path
        try:
            self._file: BinaryIO = open(path, "r+b" if os.path.exists(path) else "w+b", buffering=0)  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StartupError(f"--output {path}: another tern generate writes to it") from None
        except OSError as error:
            raise StartupError(f"--output {path}: {error.strerror}") from None
        if overwrite:
            self._file.truncate(0)

    def resume(self, lines: Iterator[Line]) -> tuple[int, int]:
        """Take the lines that are answered already off the iterator, and go on behind them: how many there
        are, and how many of them are errors. Half a line, at the end, is cut off.

        Raises StartupError for answers to something else.
        """
        content_end, count, errors = 0, 0, 0
        self._file.seek(0)
        with open(os.dup(self._file.fileno()), "rb") as reader:
            for raw in reader:
                if not raw.endswith(b"\n"):
                    break
                line = next(lines, None)
                found = _Answered.of(raw)
                if line is None or found.digest != line.digest:
                    told = f"answers another question than line {count + 1} of the input with these options"
                    what = told if line is not None else "has more lines than the input"
                    raise StartupError(
                        f"--output {self.path}: line {count + 1} {what}",
                        hint="give the input and options of then, another --output, or --overwrite",
                    )
                count += 1
                errors += found.error is not None
                content_end += len(raw)
        self._file.truncate(content_end)
        self._file.seek(content_end)
        return count, errors

    def append(self, line: bytes) -> None:
        """Raises StartupError when the disk is full."""
        try:
            written = self._file.write(line)
            while written is not None and written < len(line):
                line = line[written:]
                written = self._file.write(line)
        except OSError as error:
            raise StartupError(
                f"--output {self.path}: {error.strerror}", hint="run the same command again to go on"
            ) from None

    def close(self) -> None:
        self._file.close()


def count_lines(path: str) -> int:
    """That are not empty. Raises StartupError if the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return sum(1 for raw in file if raw.strip())
    except OSError as error:
        raise StartupError(f"--input {path}: {error.strerror}") from None


def _id(own: Asked, number: int) -> str | int:
    given = own.custom_id if own.custom_id is not None else own.id
    return number if given is None else given


def _openai_question(own: Asked, defaults: Mapping[str, Any]) -> Question:
    if own.custom_id is None or own.body is None:
        raise Mistake("expected both custom_id and body")
    if own.method != "POST" or own.url not in PATHS:
        raise Mistake(
            f"{own.method} {own.url or 'without a url'}: expected POST and one of {', '.join(PATHS)}"
        )
    takes = defaults if own.url in PATHS[:2] else {}
    return _checked(Question(own.url, {**takes, **own.body}))


def _question(document: dict[str, Any], defaults: Mapping[str, Any]) -> Question:
    fields = {name: value for name, value in document.items() if name != "id"}
    if ("prompt" in fields) == ("messages" in fields):
        raise Mistake("expected either prompt or messages")
    if fields.get("n", 1) != 1:
        raise Mistake("n: a line has one answer; lines of OpenAI's batch format may ask for more")
    return _checked(Question(PATHS["prompt" in fields], {**defaults, **fields}))


def _checked(question: Question) -> Question:
    if question.body.get("stream"):
        raise Mistake("stream: a line's answer comes whole")
    return question


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    """Of a completion's document, what a line of the simple kind has."""
    choice = body["choices"][0]
    message = {k: v for k, v in choice.get("message", {}).items() if v is not None and k != "role"}
    text = choice.get("text", message.pop("content", ""))
    return {"text": text, "finish_reason": choice["finish_reason"], "usage": body["usage"], **message}
