"""Answer: one choice as it is written. Tokens in, text or parts out; knows neither sockets nor JSON.

Held back are the bytes of an unfinished character and a tail that could begin a stop string. What comes
out in pieces is therefore always a prefix of the final text, however the tokens were batched.
"""

from collections import deque

from msgspec import Struct

from protocol.messages import Finish
from protocol.stream import TokenBatch, TokenLogprob

from .detokenizer import Detokenizer
from .parts import Part, Reader
from .stop_strings import StopStrings

STOP, LENGTH, TOOL_CALLS = "stop", "length", "tool_calls"


class TokenEntry(Struct, frozen=True, gc=False):
    """A token of the text, for log-probabilities."""

    token_id: int
    offset: int
    """Characters of the answer before it."""
    logprob: TokenLogprob | None


class Piece(Struct, frozen=True, gc=False):
    """What may be sent now."""

    text: str
    """Empty where there are parts instead."""
    finish_reason: str | None = None
    entries: tuple[TokenEntry, ...] = ()
    parts: tuple[Part, ...] = ()
    """Of an answer that is read."""


class Answer:
    """Sampled tokens of one choice, becoming text.

    The token that ended the answer (end of sequence, or one of `stop_token_ids`) is not part of the text
    unless `include_stop`. `num_tokens` counts every token used, up to the one that completed a stop string,
    or after which `reader` wants no more; `num_reasoning_tokens` those of them that belong to reasoning.
    Stop strings are looked for in the text before it is read.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings | None,
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        logprobs: bool = False,
        reader: Reader | None = None,
    ) -> None:
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.ending: TokenEntry | None = None
        """The token that ended it, which is none of its text, when log-probabilities were asked for."""
        self._detokenizer = detokenizer
        self._stops = stops
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._logprobs = logprobs
        self._reader = reader
        self._parts: list[Part] = []
        self._token_by_token = stops is not None or logprobs or reader is not None
        self._decoded_chars = 0
        self._sent_chars = 0
        self._entries: deque[TokenEntry] = deque()

    @property
    def stop_string(self) -> str | None:
        """The one that ended it."""
        return self._stops.found if self._stops is not None else None

    def take(self, batch: TokenBatch) -> Piece:
        """The next tokens. An empty piece: all of it is held back."""
        token_ids, finish = batch.token_ids, batch.finish
        stopped = finish is Finish.STOP and not self._include_stop
        if self._token_by_token:
            return self._take_each(batch, stopped)
        self.num_tokens += len(token_ids)
        if not finish:
            return Piece(self._detokenizer.push(token_ids))
        text = self._detokenizer.push(token_ids[:-1] if stopped else token_ids)
        self.finish_reason = STOP if finish is Finish.STOP else LENGTH
        return Piece(text + self._detokenizer.flush(), self.finish_reason)

    def break_off(self) -> Piece:
        """It cannot go on: what was held back, but for the bytes of an unfinished character."""
        text = self._read(self._stops.flush() if self._stops is not None else "")
        if self._reader is not None:
            self._parts += self._reader.finish()
        self._sent_chars = self._decoded_chars + 1
        return self._piece(text)

    def _take_each(self, batch: TokenBatch, stopped: bool) -> Piece:
        text = ""
        last = len(batch.token_ids) - 1
        for i, token_id in enumerate(batch.token_ids):
            self.num_tokens += 1
            logprob = batch.logprobs[i] if batch.logprobs is not None else None
            if stopped and i == last:
                if self._logprobs:
                    self.ending = TokenEntry(token_id, self._decoded_chars, logprob)
                break
            if self._logprobs:
                self._entries.append(TokenEntry(token_id, self._decoded_chars, logprob))
            self.num_reasoning_tokens += self._reader is not None and self._reader.reasoning
            text += self._read(self._screen(self._detokenizer.push((token_id,))))
            if self._stops is not None and self._stops.found is not None:
                return self._end(text, STOP)
            if self._reader is not None and self._reader.done:
                return self._end(text, STOP)
        if batch.finish:
            rest = self._screen(self._detokenizer.flush())
            cut = self._stops is not None and self._stops.found is not None
            if self._stops is not None and not cut:
                rest += self._stops.flush()
            text += self._read(rest)
            if not cut:
                self._sent_chars = self._decoded_chars + 1  # no entry waits for more text
            return self._end(text, STOP if cut or batch.finish is Finish.STOP else LENGTH)
        return self._piece(text)

    def _read(self, text: str) -> str:
        """The same text, of which the parts are kept."""
        if self._reader is not None:
            self._parts += self._reader.feed(text)
        return text

    def _end(self, text: str, reason: str) -> Piece:
        if self._reader is not None:
            self._parts += self._reader.finish()
            if reason is STOP and self._reader.num_calls and not self._reader.cut:
                reason = TOOL_CALLS
        self.finish_reason = reason
        return self._piece(text)

    def _screen(self, text: str) -> str:
        self._decoded_chars += len(text)
        if self._stops is None or self.num_tokens <= self._min_tokens:
            return text
        return self._stops.push(text)

    def _piece(self, text: str) -> Piece:
        """With the entries of those tokens whose text has begun to go out."""
        self._sent_chars += len(text)
        ready: list[TokenEntry] = []
        while self._entries and self._entries[0].offset < self._sent_chars:
            ready.append(self._entries.popleft())
        if self._reader is None:
            return Piece(text, self.finish_reason, tuple(ready))
        parts, self._parts = tuple(self._parts), []
        return Piece("", self.finish_reason, tuple(ready), parts)
