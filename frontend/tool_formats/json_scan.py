"""JSON as it comes, piece by piece: where a value ends, what a call's object says. Checks brackets only."""

import re
from typing import Final

import msgspec

_PLAIN = re.compile(r'[^"\\]+')
_OUTSIDE = re.compile(r'[^"{}\[\],\s]+')
_BLANK = " \t\r\n"
_PAIRS = {"}": "{", "]": "["}


class JsonValue:
    """One value of any kind."""

    def __init__(self) -> None:
        self.kind = ""
        """Its first character."""
        self.ended = False
        self.failed = False
        self._open = ""
        """Brackets that are not closed yet."""
        self._in_string = False
        self._escaped = False

    def feed(self, text: str, at: int) -> int:
        """Where in the text it ends, or the text does."""
        while at < len(text) and not self.ended and not self.failed:
            at = self._string(text, at) if self._in_string else self._outside(text, at)
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        if (plain := _PLAIN.match(text, at)) is not None:
            return plain.end()
        if text[at] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.ended = not self._open
        return at + 1

    def _outside(self, text: str, at: int) -> int:
        char = text[at]
        first = not self.kind
        if first:
            self.kind = char
            self.failed = char in "}],:"
        if char == '"':
            if not first and not self._open:
                self.failed = True
            self._in_string = True
        elif char in "{[":
            if not first and not self._open:
                self.failed = True
            self._open += char
        elif char in "}]":
            if not self._open:  # of whatever holds this number or word
                self.ended = True
                return at
            self.failed = self._open[-1] != _PAIRS[char]
            self._open = self._open[:-1]
            self.ended = not self._open and not self.failed
        elif not self._open and (char == "," or char in _BLANK):
            self.ended = True
            return at
        elif (run := _OUTSIDE.match(text, at)) is not None:
            return run.end()
        return at + 1


class CallObject:
    """{"name": …, "arguments": {…}}, its members in any order; `parameters` is the same as `arguments`."""

    ARGUMENTS: Final = ("arguments", "parameters")
    BEFORE_NAME: Final = ("name", "id", "type", *ARGUMENTS)
    """Whoever begins with another key is no call, which is good to know soon."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.begun = False
        """The name is known, and so is that there are arguments; `take` has what is known of them."""
        self.ended = False
        self.failed = False
        self._arguments = ""
        self._seen: set[str] = set()
        self._expect = "{"
        self._key = ""
        self._text = ""
        """Of the key or value being read, unless it is on its way out."""
        self._value = JsonValue()

    def feed(self, text: str) -> int:
        """How many characters of the text belong to it."""
        at = 0
        while at < len(text) and not self.ended and not self.failed:
            if self._expect in ("key", "value"):
                end = self._value.feed(text, at)
                self._take(text[at:end])
                at = end
            else:
                self._between(text[at])
                at += not self.failed and self._expect not in ("key", "value")
        return at

    def take(self) -> str:
        """What is new of the arguments."""
        taken, self._arguments = self._arguments, ""
        return taken

    def _between(self, char: str) -> None:
        if char in _BLANK:
            return
        expect = self._expect
        if expect == "{":
            self._expect, self.failed = "first", char != "{"
        elif expect in ("first", "more") and char == "}":
            self._end()
        elif expect == "more":
            self._expect, self.failed = "another", char != ","
        elif expect in ("first", "another"):
            self._expect, self._value, self._text, self.failed = "key", JsonValue(), "", char != '"'
        else:
            self._expect, self.failed = "before value", char != ":"
            if expect == "before value":
                self._expect, self._value, self._text, self.failed = "value", JsonValue(), "", False

    def _take(self, text: str) -> None:
        self._text += text
        value = self._value
        if self._expect == "key":
            if value.ended:
                self._key, self._expect = self._decoded(), ":"
                again = self._has_arguments and self._key in self.ARGUMENTS
                other = self.name is None and self._key not in self.BEFORE_NAME
                self.failed |= again or other or self._key in self._seen
                self._seen.add(self._key)
            return
        if self._key in self.ARGUMENTS and value.kind == "{":
            self._arguments += self._text
            self._text = ""
        self.failed |= value.failed
        if value.ended:
            self._expect = "more"
            self._member()
        self.begun |= self.name is not None and bool(self._arguments)

    @property
    def _has_arguments(self) -> bool:
        return any(key in self._seen for key in self.ARGUMENTS)

    def _member(self) -> None:
        """A member is complete."""
        kind = self._value.kind
        if self._key == "name":
            self.name, self.failed = self._decoded(), self.failed or kind != '"'
        elif self._key in self.ARGUMENTS and kind == '"':  # as a text of its own
            given = self._decoded()
            self.failed |= not _is_object(given)
            self._arguments = "" if self.failed else given
        elif self._key in self.ARGUMENTS and kind != "{":
            self.failed |= self._text != "null"
            self._arguments = "" if self.failed else "{}"

    def _end(self) -> None:
        self.failed = self.name is None
        self.ended = not self.failed
        if not self._has_arguments:
            self._arguments = "{}"
        self.begun = self.ended

    def _decoded(self) -> str:
        try:
            return msgspec.json.decode(self._text, type=str)
        except (msgspec.DecodeError, UnicodeError):
            self.failed = True
            return ""


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False
