"""The log of requests: a record of each, with its id, times and token counts, never with its text.

What a request turns out to be is noted where it is known; its entry is found through the context of the task
that answers it. As text: `name=value …`; as JSON (--log-format json): one object a line.
"""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Self

import msgspec

log = logging.getLogger("tern.request")

_ENTRY: ContextVar["Entry | None"] = ContextVar("entry", default=None)


class Ledger:
    """Counts every answer; logs them if that is wanted."""

    def __init__(self, count: Callable[[int], None], *, log_requests: bool) -> None:
        """`count` is told the status of each answer."""
        self.count = count
        self.log_requests = log_requests

    def entry(self, request_id: bytes, method: str, path: str) -> "Entry":
        """For the time in which a request is answered."""
        return Entry(self, request_id, method, path)


class Entry:
    """One request. Entered by the task that answers it, before it starts others."""

    __slots__ = ("_began", "_ledger", "fields", "status")

    def __init__(self, ledger: Ledger, request_id: bytes, method: str, path: str) -> None:
        self.status = 0
        """Of the answer, once it has begun."""
        self.fields: dict[str, Any] = {"request_id": request_id.decode(), "method": method, "path": path}
        self._ledger = ledger
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._ledger.log_requests:
            _ENTRY.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.count(self.status)
        if self._ledger.log_requests:
            seconds = round(time.monotonic() - self._began, 4)
            fields = {**self.fields, "status": self.status, "seconds": seconds}
            text = " ".join(f"{name}={_one_line(value)}" for name, value in fields.items())
            log.info("%s", text, extra={"fields": fields})


def _one_line(value: object) -> str:
    """A path may hold anything, a line's end and ` status=200` too."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def note(**fields: Any) -> None:
    """Add to the entry of the present request, if there is one."""
    entry = _ENTRY.get()
    if entry is not None:
        entry.fields.update(fields)


class JsonFormatter(logging.Formatter):
    """Each record as an object on one line. The supervisor adds the process."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        document = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **(fields if fields is not None else {"message": record.getMessage()}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(document).decode()
