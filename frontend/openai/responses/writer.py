"""ResponseWriter: one response's events in their order, and the response object in the end.

response.created, response.in_progress
  response.output_item.added                  of every item: item_id and output_index are its own
    response.content_part.added
      response.output_text.delta …
    response.output_text.done, response.content_part.done
  response.output_item.done
response.completed | response.incomplete | response.failed, then error
"""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import structs

from protocol.errors import TernError

from ...answer import LENGTH, Piece, TokenEntry
from ...outbox import Outbox
from ...responses import error_body
from ...streams import Generation
from ..logprobs import ChatTokenLogprob, Vocabulary, chat_logprobs
from .response import (
    IncompleteDetails,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ResponseError,
    ResponseObject,
    response_usage,
)

_encode = msgspec.json.Encoder().encode
_DELTA = "response.output_text.delta"

Keep = Callable[[ResponseObject], Awaitable[ResponseObject]]
"""Called with the final object before anybody hears of it; returns it as it is to be told."""


class ResponseWriter:
    """A TurnWriter."""

    def __init__(
        self,
        response: ResponseObject,
        key: str,
        generation: Generation,
        outbox: Outbox,
        keep: Keep,
        now: Callable[[], int],
        vocabulary: Vocabulary,
        width: int | None,
    ) -> None:
        """`response`: as it begins. `width`: as in chat_logprobs; None: no log-probabilities are wanted."""
        self._response = response
        self._key = key
        self._generation = generation
        self._outbox = outbox
        self._keep = keep
        self._now = now
        self._vocabulary = vocabulary
        self._width = width
        self._output: list[OutputItem] = []
        self._message: _Message | None = None
        self._begun = False

    def write(self, piece: Piece) -> None:
        if not self._begun:
            self._begun = True
            self._lifecycle("response.created")
            self._lifecycle("response.in_progress")
        if piece.text or piece.entries:
            self._text(piece.text, piece.entries)

    async def end(self) -> ResponseObject:
        cut = self._generation.choices[0].finish_reason == LENGTH
        status: ItemStatus = "incomplete" if cut else "completed"
        if not self._output and self._message is None:
            self._text("", ())
        self._close(status)
        self._response = await self._keep(
            structs.replace(
                self._response,
                status=status,
                output=self._output,
                usage=response_usage(self._generation.usage()),
                incomplete_details=IncompleteDetails("max_output_tokens") if cut else None,
                completed_at=msgspec.UNSET if cut else self._now(),
            )
        )
        self._lifecycle(f"response.{status}")
        return self._response

    def last_words(self, error: TernError) -> bytes:
        """The last event has its documented shape, and the nested error that every client raises on."""
        self._close("incomplete")
        said = ResponseError("server_error", error.message)
        self._response = structs.replace(
            self._response,
            status="failed",
            output=self._output,
            error=said,
            usage=response_usage(self._generation.usage()),
        )
        self._lifecycle("response.failed")
        nested = msgspec.json.decode(error_body(error))
        body = {"type": "error", "code": error.code, "message": error.message, "param": error.param, **nested}
        self._outbox.mark("error", _encode(body))
        return self._outbox.take()

    def _text(self, text: str, entries: Sequence[TokenEntry]) -> None:
        if self._message is None:
            index = len(self._output)
            self._message = _Message(f"msg_{self._key}_{index}", index, self._outbox)
        logprobs = (
            chat_logprobs(entries, self._width, self._vocabulary).content if self._width is not None else []
        )
        self._message.write(text, logprobs)

    def _close(self, status: ItemStatus) -> None:
        if self._message is not None:
            self._output.append(self._message.close(status))
            self._message = None

    def _lifecycle(self, name: str) -> None:
        self._outbox.mark(name, _encode({"type": name, "response": self._response}))


class _Message:
    """An output item that is being written: text with its log-probabilities."""

    def __init__(self, item_id: str, index: int, outbox: Outbox) -> None:
        self._id = item_id
        self._index = index
        self._outbox = outbox
        self._texts: list[str] = []
        self._logprobs: list[ChatTokenLogprob] = []
        place = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._before = _encode({"type": _DELTA, **place})[:-1] + b',"delta":'
        self._place = place
        item = OutputMessage(item_id, "in_progress", [])
        self._mark("response.output_item.added", {"output_index": index, "item": item})
        self._mark("response.content_part.added", {**place, "part": OutputText()})

    def write(self, text: str, logprobs: Sequence[ChatTokenLogprob]) -> None:
        """Hot path."""
        self._texts.append(text)
        self._logprobs += logprobs
        text, logprobs = self._outbox.unknown(text, logprobs)
        if text or logprobs:
            behind = b',"logprobs":[]}' if not logprobs else b',"logprobs":%b}' % _encode(logprobs)
            self._outbox.delta(b"response.output_text.delta", self._before + _encode(text) + behind)

    def close(self, status: ItemStatus) -> OutputMessage:
        text = "".join(self._texts)
        part = OutputText(text, logprobs=self._logprobs)
        item = OutputMessage(self._id, status, [part])
        done = {**self._place, "text": text, "logprobs": self._logprobs}
        self._mark("response.output_text.done", done)
        self._mark("response.content_part.done", {**self._place, "part": part})
        self._mark("response.output_item.done", {"output_index": self._index, "item": item})
        return item

    def _mark(self, name: str, fields: dict[str, object]) -> None:
        self._outbox.mark(name, _encode({"type": name, **fields}))
