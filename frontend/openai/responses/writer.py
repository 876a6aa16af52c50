"""ResponseWriter: one response's events in their order, and the response object in the end.

response.created, response.queued if it is a background one, response.in_progress
  response.output_item.added                  of every item: item_id and output_index are its own
    response.content_part.added
      response.output_text.delta …            or reasoning_text.delta, or function_call_arguments.delta
    response.output_text.done, response.content_part.done
  response.output_item.done
response.completed | response.incomplete | response.failed, then error
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, assert_never

import msgspec
from msgspec import structs

from protocol.errors import TernError

from ...answer import LENGTH, TOOL_CALLS, Piece, TokenEntry
from ...outbox import Outbox
from ...parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallStart
from ...responses import error_body
from ...streams import Generation
from ..logprobs import Vocabulary, chat_logprobs
from .response import IncompleteDetails, ItemStatus, OutputItem, ResponseError, ResponseObject, response_usage
from .written_items import WrittenCall, WrittenItem, WrittenMessage, WrittenReasoning

_encode = msgspec.json.Encoder().encode

_ERROR_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}
"""By status, of those that the document has."""

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
        """`response`: as it begins; ids of items follow from `key`. `width`: as in chat_logprobs; None: no
        log-probabilities are wanted."""
        self._response = response
        self._key = key
        self._generation = generation
        self._outbox = outbox
        self._keep = keep
        self._now = now
        self._vocabulary = vocabulary
        self._width = width
        self._output: list[OutputItem] = []
        self._announced = self._begun = False
        self._open: WrittenItem | None = None
        """One of the following, or none."""
        self._message: WrittenMessage | None = None
        self._reasoning: WrittenReasoning | None = None
        self._call: WrittenCall | None = None

    def write(self, piece: Piece) -> None:
        if not self._begun:
            self._begun = True
            self._announce()
            self._lifecycle("response.in_progress")
        if piece.text or piece.entries:
            self._say(piece.text, piece.entries)
        for part in piece.parts:
            self._add(part)

    async def end(self) -> ResponseObject:
        reason = self._generation.choices[0].finish_reason
        cut = reason == LENGTH
        status: ItemStatus = "incomplete" if cut else "completed"
        if not self._output and self._open is None:
            self._say("", ())
        self._close("incomplete" if self._call is not None and reason != TOOL_CALLS else status)
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

    @property
    def begun(self) -> bool:
        """Something of the answer has come."""
        return self._begun

    @property
    def response(self) -> ResponseObject:
        """As it was last told of."""
        return self._response

    def last_words(self, error: TernError, request_id: str) -> bytes:
        """The last event has its documented shape, and the nested error that every client raises on."""
        self._break_off(
            status="failed",
            error=ResponseError(_ERROR_CODES.get(error.status, "server_error"), error.message),
        )
        self._lifecycle("response.failed")
        return self._error(error)

    def cancelled(self, error: TernError) -> bytes:
        """Its last event. What has come so far is all there will be."""
        self._break_off(status="cancelled")
        return self._error(error)

    def _break_off(self, **changes: Any) -> None:
        self._announce()
        self._outbox.break_off()
        self._close("incomplete")
        usage = response_usage(self._generation.usage())
        self._response = structs.replace(self._response, output=self._output, usage=usage, **changes)

    def _error(self, error: TernError) -> bytes:
        nested = msgspec.json.decode(error_body(error))
        body = {"type": "error", "code": error.code, "message": error.message, "param": error.param, **nested}
        self._outbox.mark("error", _encode(body))
        return self._outbox.take()

    def _add(self, part: Part) -> None:
        match part:
            case TextPart(text=text):
                self._say(text, ())
            case ReasoningPart(text=text):
                if self._reasoning is None:
                    self._close("completed")
                    self._open = self._reasoning = WrittenReasoning(*self._place("rs"))
                self._reasoning.write(text)
            case ToolCallStart(id=call_id, name=name):
                self._close("completed")
                self._open = self._call = WrittenCall(*self._place("fc"), call_id, name)
            case ToolCallArguments(text=text):
                assert self._call is not None, "arguments follow the start of their call"
                self._call.write(text)
            case _:
                assert_never(part)

    def _say(self, text: str, entries: Sequence[TokenEntry]) -> None:
        if self._message is None:
            self._close("completed")
            self._open = self._message = WrittenMessage(*self._place("msg"))
        width = self._width
        logprobs = chat_logprobs(entries, width, self._vocabulary).content if width is not None else []
        self._message.write(text, logprobs)

    def _place(self, prefix: str) -> tuple[str, int, Outbox]:
        """The id of the next item, its index, and where its events go."""
        index = len(self._output)
        return f"{prefix}_{self._key}_{index}", index, self._outbox

    def _close(self, status: ItemStatus) -> None:
        if self._open is not None:
            self._output.append(self._open.close(status))
            self._open = self._message = self._reasoning = self._call = None

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            announce(self._response, self._outbox)

    def _lifecycle(self, name: str) -> None:
        _tell(name, self._response, self._outbox)


def announce(response: ResponseObject, outbox: Outbox) -> None:
    """Its first events, which say that there is such a response, and of a background one that it waits."""
    if response.background:
        response = structs.replace(response, status="queued")
    _tell("response.created", response, outbox)
    if response.background:
        _tell("response.queued", response, outbox)


def _tell(name: str, response: ResponseObject, outbox: Outbox) -> None:
    outbox.mark(name, _encode({"type": name, "response": response}))
