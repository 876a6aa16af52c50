"""CallReader: text with calls in it, as it comes; what all formats have in common.

Blank text around calls is dropped, all other text is passed on. What begins like a call and turns out to be
none, because it is malformed or names no tool of the request, is passed on as text. From where its arguments
begin, a call is passed on as the model writes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from ..parts import Part, TextPart, ToolCallArguments, ToolCallStart
from ..tools import Tool
from .json_scan import CallObject, JsonValue

State = Callable[[], bool]
"""What to do with the text at hand; True: go on, with what has become the state."""


class CallReader(ABC):
    """A Reader (parts.py). Subclasses say what follows an opener."""

    openers: tuple[str, ...] = ()

    def __init__(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> None:
        """`single`: the answer is done when one call is complete."""
        self.reasoning = False
        self.num_calls = 0
        self.done = False
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._single = single
        self._num_ended = 0
        """Of the calls."""
        self._out: list[Part] = []
        self._state: State = self._begin
        self._held = ""
        """Not looked at yet, or not yet certain."""
        self._raw: str | None = None
        """Of a call that has not begun: what it looks like as text; None: there is none."""
        self._blank = ""
        """Between texts and calls."""
        self._object = CallObject()
        self._value = JsonValue()

    @property
    def cut(self) -> bool:
        return self.num_calls > self._num_ended

    def feed(self, text: str) -> Sequence[Part]:
        self._held += text
        while not self.done and self._state():
            pass
        return self._flush()

    def finish(self) -> Sequence[Part]:
        if not self.done:
            self._say((self._raw or "") + self._held)
            if not self.num_calls:
                self._out.append(TextPart(self._blank))
            self._held, self._raw, self._blank = "", None, ""
        return self._flush()

    @abstractmethod
    def _opened(self) -> bool:
        """State: behind an opener, which is in `_raw`."""

    def _begin(self) -> bool:
        """State: nothing has come yet."""
        self._state = self._text
        return True

    def _text(self) -> bool:
        """State: in text."""
        held = self._held
        found = [(at, opener) for opener in self.openers if (at := held.find(opener)) >= 0]
        if found:
            at, opener = min(found)
            self._say(held[:at])
            self._held, self._raw = held[at + len(opener) :], opener
            self._state = self._opened
            return True
        at = tail_of(held, self.openers)
        self._say(held[:at])
        self._held = held[at:]
        return False

    @abstractmethod
    def _closed(self) -> bool:
        """State: behind a call."""

    def _in_object(self) -> bool:
        """State: in {"name": …, "arguments": …}; `_object` is new at its beginning."""
        call = self._object
        if not self._held:
            return False
        used = call.feed(self._held)
        self._use(used)
        if call.name is not None and call.name not in self._tools:
            return self._give_up()
        if call.begun:
            if self._raw is not None:
                assert call.name is not None
                self._start(call.name)
            self._argue(call.take())
        if call.ended:
            self._end(self._closed)
        elif call.failed:
            return self._give_up()
        return call.ended

    def _in_arguments(self) -> bool:
        """State: in the arguments of a call that has begun; `_value` is new at their beginning."""
        if not self._held:
            return False
        value = self._value
        used = value.feed(self._held, 0)
        self._argue(self._held[:used])
        self._held = self._held[used:]
        if value.ended:
            self._end(self._closed)
        elif value.failed:
            self._state = self._text
        return value.ended or value.failed

    # ── for the states ──────────────────────────────────────────────────────────────────────────

    def _blank_before(self) -> bool:
        """Pass over blanks; False: nothing else is there yet."""
        rest = self._held.lstrip()
        self._use(len(self._held) - len(rest))
        return bool(rest)

    def _behind_call(self, states: dict[str, State], otherwise: State, opener: str = "") -> bool:
        """Which of these marks comes next; a missing one is not missed. `opener`: the one that begins
        another call."""
        if not self._blank_before():
            return False
        for mark, state in states.items():
            if self._held.startswith(mark):
                if mark == opener:
                    self._raw = ""
                self._use(len(mark))
                self._state = state
                return True
            if mark.startswith(self._held):
                return False
        self._state = otherwise
        return True

    def _use(self, count: int) -> None:
        """Go on behind so many characters."""
        if self._raw is not None:
            self._raw += self._held[:count]
        self._held = self._held[count:]

    def _give_up(self) -> bool:
        """It is no call."""
        self._say(self._raw or "")
        self._raw = None
        self._state = self._text
        return True

    def _start(self, name: str) -> None:
        self._out.append(ToolCallStart(self.num_calls, self._new_id(self.num_calls), name))
        self.num_calls += 1
        self._raw, self._blank = None, ""

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(ToolCallArguments(self.num_calls - 1, text))

    def _end(self, state: State) -> None:
        self._num_ended += 1
        self._state = state
        self.done = self._single

    def _say(self, text: str) -> None:
        text = self._blank + text
        solid = text.rstrip()
        self._blank = text[len(solid) :]
        if solid:
            self._out.append(TextPart(solid))

    def _flush(self) -> Sequence[Part]:
        out, self._out = self._out, []
        return [part for part in out if not isinstance(part, TextPart) or part.text]


def tail_of(text: str, marks: Sequence[str]) -> int:
    """From where on a text could be the beginning of a mark."""
    first = len(text)
    for mark in marks:
        at = text.find(mark[0], max(len(text) - len(mark) + 1, 0))
        while 0 <= at < first:
            if mark.startswith(text[at:]):
                first = at
            at = text.find(mark[0], at + 1)
    return first
