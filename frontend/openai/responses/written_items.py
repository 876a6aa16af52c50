"""Output items while they are written: each knows the events of its kind, and what it is in the end."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from ...outbox import Outbox
from ..logprobs import ChatTokenLogprob
from .response import (
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
)

_encode = msgspec.json.Encoder().encode


class WrittenItem(Protocol):
    """Begun when it is made."""

    def close(self, status: ItemStatus) -> OutputItem:
        """Its last events."""
        ...


class _Events:
    """Of one item."""

    def __init__(self, item_id: str, index: int, outbox: Outbox, delta: str, *, content: bool) -> None:
        """`delta`: the name of the events with more of it; `content`: they are of a part of the item."""
        self.item_id = item_id
        self._index = index
        self._outbox = outbox
        self._place = {"item_id": item_id, "output_index": index, **({"content_index": 0} if content else {})}
        self._delta = delta.encode()
        self._before = _encode({"type": delta, **self._place})[:-1] + b',"delta":'

    def item(self, name: str, item: OutputItem) -> None:
        self._mark(f"response.output_item.{name}", {"output_index": self._index, "item": item})

    def part(self, name: str, part: OutputText | ReasoningText) -> None:
        self._mark(f"response.content_part.{name}", {**self._place, "part": part})

    def done(self, name: str, fields: Mapping[str, object]) -> None:
        self._mark(name, {**self._place, **fields})

    def delta(self, text: str, logprobs: Sequence[ChatTokenLogprob] | None = None) -> None:
        """Hot path. `logprobs` of None: these events have none."""
        text, unknown = self._outbox.unknown(text, logprobs or ())
        if text or unknown:
            behind = (
                b"}" if logprobs is None else b',"logprobs":%b}' % (_encode(unknown) if unknown else b"[]")
            )
            self._outbox.delta(self._delta, self._before + _encode(text) + behind)

    def _mark(self, name: str, fields: dict[str, object]) -> None:
        self._outbox.mark(name, _encode({"type": name, **fields}))


class WrittenMessage:
    """Text with its log-probabilities."""

    def __init__(self, item_id: str, index: int, outbox: Outbox) -> None:
        self._events = _Events(item_id, index, outbox, "response.output_text.delta", content=True)
        self._texts: list[str] = []
        self._logprobs: list[ChatTokenLogprob] = []
        self._events.item("added", OutputMessage(item_id, "in_progress", []))
        self._events.part("added", OutputText())

    def write(self, text: str, logprobs: Sequence[ChatTokenLogprob]) -> None:
        self._texts.append(text)
        self._logprobs += logprobs
        self._events.delta(text, logprobs)

    def close(self, status: ItemStatus) -> OutputMessage:
        text = "".join(self._texts)
        part = OutputText(text, logprobs=self._logprobs)
        item = OutputMessage(self._events.item_id, status, [part])
        self._events.done("response.output_text.done", {"text": text, "logprobs": self._logprobs})
        self._events.part("done", part)
        self._events.item("done", item)
        return item


class WrittenReasoning:
    """What the model says to itself."""

    def __init__(self, item_id: str, index: int, outbox: Outbox) -> None:
        self._events = _Events(item_id, index, outbox, "response.reasoning_text.delta", content=True)
        self._texts: list[str] = []
        self._events.item("added", OutputReasoning(item_id, "in_progress", []))
        self._events.part("added", ReasoningText(""))

    def write(self, text: str) -> None:
        self._texts.append(text)
        self._events.delta(text)

    def close(self, status: ItemStatus) -> OutputReasoning:
        part = ReasoningText("".join(self._texts))
        item = OutputReasoning(self._events.item_id, status, [part])
        self._events.done("response.reasoning_text.done", {"text": part.text})
        self._events.part("done", part)
        self._events.item("done", item)
        return item


class WrittenCall:
    """A function and its arguments."""

    def __init__(self, item_id: str, index: int, outbox: Outbox, call_id: str, name: str) -> None:
        delta = "response.function_call_arguments.delta"
        self._events = _Events(item_id, index, outbox, delta, content=False)
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []
        self._events.item("added", OutputFunctionCall(item_id, "in_progress", call_id, name, ""))

    def write(self, text: str) -> None:
        self._arguments.append(text)
        self._events.delta(text)

    def close(self, status: ItemStatus) -> OutputFunctionCall:
        arguments = "".join(self._arguments)
        item = OutputFunctionCall(self._events.item_id, status, self._call_id, self._name, arguments)
        done = {"name": self._name, "arguments": arguments}
        self._events.done("response.function_call_arguments.done", done)
        self._events.item("done", item)
        return item
