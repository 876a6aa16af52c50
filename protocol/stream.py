"""TokenStream: what a client knows of one request, and how it waits for more. Knows no sockets, no clock.

The stream is the truth about its request: from the request and the ids it has, an engine core that has
never heard of it can go on. Only whoever iterates it needs an event loop.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto
from typing import Self

from msgspec import Struct, structs

from . import columns
from .errors import TernError
from .messages import NO_TOKEN, Finish, LogprobBlock, Submit

PATIENCE_S = 5.0
"""A stream to which nothing has come for this long is submitted again: a message may have been lost."""
MOST_PATIENCE_S = 60.0
"""The patience doubles up to here: a request that waits its turn in a long queue is silent, too."""

_FINISH = tuple(Finish)


class Parting(Enum):
    """Why a stream is closed before its end, and what becomes of its request."""

    ABORT = auto()
    """Nobody wants it: it ends, and is forgotten."""
    DETACH = auto()
    """Its reader is gone: one with a key goes on, any other ends."""
    DONE = auto()
    """What has come is enough: it ends, and of one with a key the answer is kept."""


class TokenLogprob(Struct, frozen=True, array_like=True, gc=False):
    """Log-probability of a token, and of the likeliest ones in its place, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int | None = None
    """1: it is the likeliest. Known of prompts only."""


class TokenBatch(Struct, array_like=True, gc=False):
    """What arrived since the last look: usually one token, more when the reader is slower."""

    token_ids: list[int]
    finish: Finish
    logprobs: list[TokenLogprob] | None


class TokenStream:
    """One request. Iterate it; `close` (or leaving `async with`) ends what has not finished."""

    def __init__(
        self, request: Submit, on_close: Callable[["TokenStream", Parting], object], now: float
    ) -> None:
        self.request_id = request.request_id
        self.token_ids: list[int] = list(columns.unpack_ids(request.resumed_token_ids))
        self.num_cached_tokens = 0
        self.prompt_logprobs: dict[int, TokenLogprob] = {}
        """By position in the prompt, when asked for; complete at the first token."""
        self.embedding = b""
        """float32, of a request for one that has ended"""
        self.finish = Finish.NONE
        self.sent = False
        """The engine core, this one or another, has been told of it."""
        self._request = request
        self._on_close = on_close
        self._submitted_at = now
        self._quiet_since = now
        self._patience_s = PATIENCE_S
        self._seen = 0
        self._taken = len(self.token_ids)
        self._logprobs: list[TokenLogprob] = []
        self._error: TernError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.gap = False
        """A message was lost, and the request has been submitted again."""
        self._ended = False

    def __aiter__(self) -> AsyncIterator[TokenBatch]:
        return self

    async def __anext__(self) -> TokenBatch:
        """The next tokens. After the batch whose `finish` is not NONE, the iteration stops."""
        while True:
            total = len(self.token_ids)
            if total > self._taken or (self.finish and not self._ended):
                break
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._taken = self._taken, total
        logprobs: list[TokenLogprob] | None = None
        if self._logprobs:
            logprobs, self._logprobs = self._logprobs, []
        self._ended = self.finish is not Finish.NONE
        return TokenBatch(self.token_ids[taken:total], self.finish, logprobs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def key(self) -> str:
        """Of its request, which outlives its reader; empty: it does not."""
        return self._request.key

    def close(self, parting: Parting = Parting.ABORT) -> None:
        """Drop the stream. Nothing happens if it has ended."""
        self._on_close(self, parting)

    # ── for the registry that holds it ──────────────────────────────────────────────────────────

    def submission(self, now: float) -> Submit:
        """The request as an engine core must see it to go on from here."""
        timeout_s = self._request.timeout_s
        if timeout_s is not None:
            timeout_s = max(timeout_s - (now - self._submitted_at), 0.001)
        resumed, again, self.sent = columns.pack_ids(self.token_ids), self.sent, True
        return structs.replace(self._request, resumed_token_ids=resumed, timeout_s=timeout_s, again=again)

    def wait_anew(self, now: float) -> None:
        """There is a reason for its silence, which is over now."""
        self._quiet_since, self._patience_s = now, PATIENCE_S

    def stalled(self, now: float) -> bool:
        """Whether nothing has come for as long as its patience lasts, which doubles each time."""
        seen = len(self.token_ids) + len(self.prompt_logprobs)
        if seen != self._seen:
            self._seen = seen
            self.wait_anew(now)
        if now - self._quiet_since < self._patience_s:
            return False
        self._quiet_since, self._patience_s = now, min(2 * self._patience_s, MOST_PATIENCE_S)
        return True

    @property
    def num_missing_prompt_logprobs(self) -> int:
        """Of those asked for; 0 from the first token on, unless a message was lost."""
        if self._request.sampling.prompt_logprobs is None:
            return 0
        num_prompt_tokens = len(self._request.prompt_token_ids) // columns.ID_BYTES
        return max(num_prompt_tokens - 1 - len(self.prompt_logprobs), 0)  # nothing precedes the first

    def push(self, token_id: int, finish: int, logprob: TokenLogprob | None) -> None:
        """The next row: a token, an end, or both. Hot path."""
        self.gap = False
        if token_id != NO_TOKEN:
            self.token_ids.append(token_id)
            if logprob is not None:
                self._logprobs.append(logprob)
        if finish:
            self.finish = _FINISH[finish]
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: TernError) -> None:
        """The request has ended with an error; raised once what has arrived is consumed."""
        self._error = error
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def unpack_logprobs(block: LogprobBlock) -> list[tuple[int, TokenLogprob]]:
    """(row, its log-probabilities) of each row of a block."""
    rows: array[int] = columns.unpack(columns.UINT32, block.rows)
    chosen = columns.unpack_floats(block.chosen)
    ids, values = columns.unpack_ids(block.top_ids), columns.unpack_floats(block.top_values)
    ranks = columns.unpack(columns.UINT32, block.ranks) if block.ranks else None
    width = block.width
    return [
        (
            row,
            TokenLogprob(
                chosen[i],
                tuple(
                    zip(ids[i * width : (i + 1) * width], values[i * width : (i + 1) * width], strict=True)
                ),
                None if ranks is None else ranks[i],
            ),
        )
        for i, row in enumerate(rows)
    ]
