"""Reasoning: what a model says to itself between two marks, before its answer. Knows nothing of tools.

    prompt ends with      answer
    … assistant           <think>…</think>answer      it may open the reasoning itself
    … assistant<think>    …</think>answer             the chat template has opened it
    … <think></think>     answer                      … and closed it: the model was told not to reason

Blank text around the reasoning is dropped. Reasoning that never closes is all there is of that answer.
"""

from collections.abc import Sequence
from enum import Enum, auto

from msgspec import Struct

from .parts import Part, Reader, ReasoningPart, TextPart
from .tool_formats.call_reader import tail_of
from .tool_formats.tool_format import thought_rule


class Marks(Struct, frozen=True):
    open: str
    close: str


MARKS = {"think": Marks("<think>", "</think>"), "mistral": Marks("[THINK]", "[/THINK]")}
"""By the name of --reasoning-parser."""


class Begins(Enum):
    """What is known of an answer before it has begun."""

    PERHAPS = auto()
    """It may open its reasoning."""
    INSIDE = auto()
    """It goes on with reasoning that is open."""
    NEVER = auto()


def marks_of(source: str) -> Marks | None:
    """Of a chat template's text; None: it knows no reasoning."""
    return next((marks for marks in MARKS.values() if marks.close in source), None)


def begins(marks: Marks, prompt: str, going_on: str | None = None) -> Begins:
    """By the end of the prompt; or by the message that the answer goes on with, which the client wrote."""
    if going_on is not None:
        return Begins.INSIDE if going_on.rfind(marks.open) > going_on.rfind(marks.close) else Begins.NEVER
    end = prompt.rstrip()
    if end.endswith(marks.open):
        return Begins.INSIDE
    return Begins.NEVER if end.endswith(marks.close) else Begins.PERHAPS


def before_answer(begin: Begins, opened: str, closed: str, budget: int | None = None) -> tuple[str, str]:
    """Lark: what comes before the answer, and the rules for it. The marks are Lark, too; see thought_rule."""
    if begin is Begins.NEVER:
        return "", ""
    head = "thought" if begin is Begins.INSIDE else f"({opened} thought)?"
    return f"{head} GAP? ", f"{thought_rule(closed, budget)}GAP: /\\n{{1,2}}/\n"


class PlainReader:
    """All of it is text."""

    def __init__(self) -> None:
        self.reasoning = False
        self.num_calls = 0
        self.cut = False
        self.done = False

    def feed(self, text: str) -> Sequence[Part]:
        return (TextPart(text),) if text else ()

    def finish(self) -> Sequence[Part]:
        return ()


class ReasoningReader:
    """A Reader (parts.py): the reasoning, then what another reader makes of the rest."""

    def __init__(self, marks: Marks, begin: Begins, rest: Reader, *, show: bool) -> None:
        """`show`: the reasoning is of interest."""
        self.reasoning = begin is Begins.INSIDE
        self._marks = marks
        self._rest = rest
        self._show = show
        self._step = self._thinking if self.reasoning else self._opening
        self._held = ""
        self._said = False
        """Of the reasoning, anything but blanks has come."""

    @property
    def num_calls(self) -> int:
        return self._rest.num_calls

    @property
    def cut(self) -> bool:
        return self._rest.cut

    @property
    def done(self) -> bool:
        return self._rest.done

    def feed(self, text: str) -> Sequence[Part]:
        return self._step(text)

    def finish(self) -> Sequence[Part]:
        held, self._held = self._held, ""
        if self.reasoning:
            return self._think(held.rstrip())
        return [*self._rest.feed(held), *self._rest.finish()]

    def _opening(self, text: str) -> Sequence[Part]:
        held = self._held + text
        begun = held.lstrip()
        self._held = held
        if begun.startswith(self._marks.open):
            self._held, self._step, self.reasoning = "", self._thinking, True
            return self._thinking(begun[len(self._marks.open) :])
        if self._marks.open.startswith(begun):
            return ()
        self._held, self._step = "", self._rest.feed
        return self._rest.feed(held)

    def _thinking(self, text: str) -> Sequence[Part]:
        held = self._held + text
        at = held.find(self._marks.close)
        if at >= 0:
            said = self._think(held[:at].rstrip())
            self._held, self._step, self.reasoning = "", self._closed, False
            return [*said, *self._closed(held[at + len(self._marks.close) :])]
        sure = held[: tail_of(held, (self._marks.close,))].rstrip()
        self._held = held[len(sure) :]
        return self._think(sure)

    def _closed(self, text: str) -> Sequence[Part]:
        text = text.lstrip()
        if not text:
            return ()
        self._step = self._rest.feed
        return self._rest.feed(text)

    def _think(self, text: str) -> Sequence[Part]:
        if not self._said:
            text = text.lstrip()
        self._said |= bool(text)
        return (ReasoningPart(text),) if text and self._show else ()
