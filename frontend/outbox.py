"""Outbox: named server-sent events of one answer, which can be taken up again where a connection broke.

    id: 9.5.12.0            only with an Idempotency-Key: what a client sends back as Last-Event-ID
    event: message_delta
    data: {"type": "message_delta", …}

An answer is written as marks (an item begins, a part ends) with pieces of text between. The marks and the
text are the same every time, only where the text is cut is not. So an id says how many marks, characters
and entries of log-probabilities a client has, and whoever writes the answer again leaves those out:

    id   next number · marks · characters · entries

Knows no event's shape.
"""

from collections.abc import Sequence
from typing import Self, TypeVar

from msgspec import Struct

from protocol.errors import InvalidRequest

LAST_EVENT_ID = "Last-Event-ID"

Entry = TypeVar("Entry")


class Position(Struct, frozen=True):
    """Where in an answer's events a client is."""

    sequence_number: int = 0
    """Of the next event."""
    marks: int = 0
    chars: int = 0
    entries: int = 0

    @classmethod
    def of(cls, numbers: tuple[int, ...] | None, *, stream: bool) -> Self:
        """From an id; None: there was none. Raises InvalidRequest."""
        if numbers is None:
            return cls()
        if not stream:
            raise InvalidRequest(f"{LAST_EVENT_ID}: only allowed with stream: true", param=LAST_EVENT_ID)
        if len(numbers) != 4:
            raise InvalidRequest(f"{LAST_EVENT_ID}: expected the id of an event", param=LAST_EVENT_ID)
        return cls(*numbers)


class Outbox:
    """Collects what is to be sent next. `numbered`: every event has a `sequence_number`; `ids`: and an id."""

    def __init__(self, *, numbered: bool, ids: bool = False, known: Position = Position()) -> None:  # noqa: B008
        self._numbered = numbered
        self._ids = ids
        self._known = known
        self._number = known.sequence_number
        self._marks = self._chars = self._entries = 0
        self._waiting = bytearray()

    def mark(self, name: str, body: bytes) -> None:
        """An event that has its fixed place between the texts. `body` is a JSON object."""
        self._marks += 1
        if self._marks > self._known.marks:
            self._put(name.encode(), body)

    def unknown(self, text: str, entries: Sequence[Entry] = ()) -> tuple[str, Sequence[Entry]]:
        """Of the next text, and of the entries beside it, what the client does not have."""
        start, first = self._chars, self._entries
        self._chars += len(text)
        self._entries += len(entries)
        if start < self._known.chars:
            text = text[self._known.chars - start :]
        if first < self._known.entries:
            entries = entries[self._known.entries - first :]
        return text, entries

    def delta(self, name: bytes, body: bytes) -> None:
        """An event with what `unknown` has just said."""
        self._put(name, body)

    def break_off(self) -> None:
        """What is marked from here on is no part of the answer: it has no id, so whoever takes the stream up
        again goes on from before it."""
        self._ids = False

    def take(self) -> bytes:
        """All that waits to be sent."""
        waiting = bytes(self._waiting)
        self._waiting.clear()
        return waiting

    def check_reached(self) -> None:
        """When all is written. Raises InvalidRequest if a client says that it has more than there is."""
        known = self._known
        if self._marks < known.marks or self._chars < known.chars or self._entries < known.entries:
            raise InvalidRequest(
                f"{LAST_EVENT_ID}: this is beyond the end of the answer", param=LAST_EVENT_ID
            )

    def _put(self, name: bytes, body: bytes) -> None:
        number, self._number = self._number, self._number + 1
        if self._ids:
            self._waiting += b"id: %d.%d.%d.%d\n" % (self._number, self._marks, self._chars, self._entries)
        if self._numbered:
            body = b'%b,"sequence_number":%d}' % (body[:-1], number)
        self._waiting += b"event: %b\ndata: %b\n\n" % (name, body)
