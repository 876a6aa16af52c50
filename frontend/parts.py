"""Parts: what an answer consists of. Knows neither tokens nor any endpoint's shapes.

    "<think>The city …</think>Let me look.<tool_call>{"name": …"
      │                       │            │
      ReasoningPart           TextPart     ToolCallStart, ToolCallArguments, ToolCallArguments, …

A Reader takes an answer's text piece by piece. What its parts come to is decided by the text alone, however
it was cut into pieces: a stream that is taken up again goes on with exactly what was still missing.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class TextPart(Struct, frozen=True, gc=False):
    """For whoever asked."""

    text: str


class ReasoningPart(Struct, frozen=True, gc=False):
    """What the model said to itself."""

    text: str


class ToolCallStart(Struct, frozen=True, gc=False):
    """A call begins. `index` counts the calls of an answer from 0; `name` is one of the request's tools."""

    index: int
    id: str
    name: str


class ToolCallArguments(Struct, frozen=True, gc=False):
    """More of the JSON text of the arguments of a call that has begun; all of them, joined, are the whole."""

    index: int
    text: str


Part = TextPart | ReasoningPart | ToolCallStart | ToolCallArguments


class Reader(Protocol):
    """Of one answer."""

    @property
    def reasoning(self) -> bool:
        """What comes next belongs, as far as is known, to the reasoning."""
        ...

    @property
    def num_calls(self) -> int:
        """That have begun."""
        ...

    @property
    def cut(self) -> bool:
        """Not all of them have come to their end; what has come of such a call is of no use."""
        ...

    @property
    def done(self) -> bool:
        """Nothing that comes from here on is wanted: the answer is to end."""
        ...

    def feed(self, text: str) -> Sequence[Part]:
        """What is certain after this text; nothing after `done`."""
        ...

    def finish(self) -> Sequence[Part]:
        """The answer has ended: what was held back."""
        ...
