"""Registry: a client's open streams, and what follows from each message. No sockets, no loop, no clock.

Whoever owns the connection hands in what has arrived, with the time, and sends what is returned. The rule
that makes every loss harmless: output i is taken only by a stream that has exactly i tokens. Lower is a
duplicate. Higher is a gap, and then, as after a silence, the stream is submitted again with the ids it has.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec

from . import columns
from .bounds import MAX_ENTRIES
from .errors import BY_CODE, InternalError, InvalidRequest, NotAttached, ProtocolMismatch, TernError
from .messages import (
    NO_TOKEN,
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    AttachRefused,
    ClientMessage,
    ControlResult,
    EngineFacts,
    EngineMessage,
    Leave,
    Outputs,
    Pong,
    Refused,
    Submit,
    Suspended,
)
from .observation import Event, Snapshot
from .sampling import SamplingParams
from .sockets import fingerprint
from .stream import Parting, TokenStream, unpack_logprobs

ATTACH_AGAIN_S = 1.0
MOST_ATTACH_AGAIN_S = 10.0
"""An Attach without an answer is sent again after the former, then after twice as long, up to the latter."""


class Registry:
    """The streams of one client, over all connections that it has had."""

    def __init__(
        self, name: str, incarnation: int, on_close: Callable[[TokenStream, Parting], object]
    ) -> None:
        """`on_close(stream, parting)` is what `TokenStream.close` calls; it sends what `close` returns."""
        self.facts: EngineFacts | None = None
        self.epoch = 0
        self.attached = False
        self.suspended = False
        """No worker is there for the moment."""
        self.refusal: TernError | None = None
        """The engine core speaks another protocol."""
        self.streams: dict[int, TokenStream] = {}
        """Those that have not had their last message."""
        self.gaps = 0
        self.resubmitted = 0
        self.malformed = 0
        """Messages with columns that do not fit together."""
        self._name = name
        self._incarnation = incarnation
        self._on_close = on_close
        self._ids = itertools.count(1)
        self._unscored: set[int] = set()
        """Streams without a token that wait for log-probabilities of their prompt."""
        self._attach_at = math.inf
        self._attach_again_s = ATTACH_AGAIN_S

    def attach(self, now: float) -> list[ClientMessage]:
        """A new connection. The streams are submitted again once it is answered."""
        self.attached = self.suspended = False
        self.refusal = None
        self._attach_again_s = ATTACH_AGAIN_S
        self._attach_at = now + ATTACH_AGAIN_S
        return [self._attach()]

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        now: float,
        *,
        resumed_token_ids: Sequence[int] = (),
        priority: int = 0,
        timeout_s: float | None = None,
        tenant: str = "",
        cache_salt: str = "",
        adapter: str = "",
        grammar: str = "",
        key: str = "",
        digest: str = "",
        embed: bool = False,
    ) -> tuple[TokenStream, list[ClientMessage]]:
        """Open a stream. While the client is not attached, there is nothing to send yet.

        A stream whose request breaks a rule of the wire has failed at once: its frames would be dropped.
        """
        request = Submit(
            request_id=next(self._ids),
            prompt_token_ids=columns.pack_ids(prompt_token_ids),
            sampling=sampling,
            resumed_token_ids=columns.pack_ids(resumed_token_ids),
            priority=priority,
            timeout_s=timeout_s,
            tenant=tenant,
            cache_salt=cache_salt,
            adapter=adapter,
            grammar=grammar,
            key=key,
            digest=digest,
            embed=embed,
        )
        stream = TokenStream(request, self._on_close, now)
        if error := self.refusal or _broken_rule(request):
            stream.fail(error)
            return stream, []
        self.streams[stream.request_id] = stream
        if stream.num_missing_prompt_logprobs:
            self._unscored.add(stream.request_id)
        return stream, [self._submission(stream, now)] if self.attached else []

    def close(self, stream: TokenStream, parting: Parting) -> list[ClientMessage]:
        """Drop a stream; nothing happens if it has ended."""
        if self.streams.pop(stream.request_id, None) is None:
            return []
        self._unscored.discard(stream.request_id)
        if not self.attached:
            return []  # an engine core that does not know us has not got it
        ids = (stream.request_id,)
        if parting is Parting.ABORT or not stream.key:
            return [Abort(ids)]
        return [Leave(ids, done=parting is Parting.DONE)]

    def close_all(self) -> list[ClientMessage]:
        """Abort every stream."""
        ids = tuple(self.streams)
        self.streams.clear()
        self._unscored.clear()
        return [Abort(ids[first : first + MAX_ENTRIES]) for first in range(0, len(ids), MAX_ENTRIES)]

    def handle(self, message: EngineMessage, now: float) -> list[ClientMessage]:
        """Take a message; whatever it holds, nothing is raised."""
        match message:
            case Outputs():
                try:
                    return self._take(message, now)
                except (ValueError, IndexError):
                    self.malformed += 1
                    return []
            case Attached():
                return self._on_attached(message, now)
            case Refused():
                return self._on_refused(message, now)
            case Suspended():
                self.suspended = True
                self._attach_at = now + self._attach_again_s
            case AttachRefused():
                self.refusal = ProtocolMismatch(message.message)
                for stream in self.streams.values():
                    stream.fail(self.refusal)
                self.streams.clear()
                self._unscored.clear()
            case Pong() | ControlResult() | Snapshot() | Event():
                pass  # of no stream
            case _:
                assert_never(message)
        return []

    def stalled(self, now: float) -> list[ClientMessage]:
        """What to send again because nothing came of it. To be called about once a second while `waiting`."""
        if self.refusal is not None:
            return []
        if self.attached and not self.suspended:
            return [self._submission(stream, now) for stream in self.streams.values() if stream.stalled(now)]
        if now < self._attach_at:
            return []
        self._attach_again_s = min(2 * self._attach_again_s, MOST_ATTACH_AGAIN_S)
        self._attach_at = now + self._attach_again_s
        return [self._attach()]

    @property
    def waiting(self) -> bool:
        """Whether something is expected of the engine core."""
        return self.refusal is None and (bool(self.streams) or not self.attached or self.suspended)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    def _attach(self) -> Attach:
        return Attach(PROTOCOL_VERSION, fingerprint(), self._name, self._incarnation)

    def _submission(self, stream: TokenStream, now: float) -> Submit:
        self.resubmitted += stream.sent
        return stream.submission(now)

    def _on_attached(self, message: Attached, now: float) -> list[ClientMessage]:
        self.facts, self.epoch = message.facts, message.epoch
        if self.attached and not self.suspended:
            return []  # a new epoch of the same engine core, which still has our requests
        known, self.attached, self.suspended = self.attached, True, False
        for stream in self.streams.values():
            stream.wait_anew(now)
        return [] if known else [self._submission(stream, now) for stream in self.streams.values()]

    def _on_refused(self, message: Refused, now: float) -> list[ClientMessage]:
        if message.code == NotAttached.code:
            return self.attach(now) if self.attached else []
        stream = self.streams.pop(message.request_id, None)
        if stream is not None:
            self._unscored.discard(message.request_id)
            kind = BY_CODE.get(message.code, InternalError)
            stream.fail(
                kind(
                    message.message, param=message.param or None, retry_after_s=message.retry_after_s or None
                )
            )
        return []

    def _take(self, outputs: Outputs, now: float) -> list[ClientMessage]:
        """The hot path: one call per engine step."""
        again: list[ClientMessage] = []
        streams = self.streams
        for request_id, cached in outputs.started:
            stream = streams.get(request_id)
            if stream is not None and not stream.token_ids:  # a resumed one counts its first start only
                stream.num_cached_tokens = cached
        for prompt in outputs.prompt_logprobs:
            if (stream := streams.get(prompt.request_id)) is not None:
                for offset, logprob in unpack_logprobs(prompt.block):
                    stream.prompt_logprobs[prompt.first_position + offset] = logprob
        for request_id, vector in outputs.embeddings:
            if (stream := streams.get(request_id)) is not None:
                stream.embedding = vector
        if self._unscored:
            streams = self._scored(outputs, now, again)
        logprobs = dict(unpack_logprobs(outputs.logprobs)) if outputs.logprobs is not None else None
        rows = zip(
            columns.unpack(columns.UINT64, outputs.request_ids),
            columns.unpack(columns.UINT32, outputs.indexes),
            columns.unpack_ids(outputs.token_ids),
            outputs.finishes,
            strict=True,
        )
        for row, (request_id, index, token_id, finish) in enumerate(rows):
            stream = streams.get(request_id)
            if stream is None:
                continue
            have = len(stream.token_ids)
            if index == have:
                stream.push(token_id, finish, None if logprobs is None else logprobs.get(row))
                if finish:
                    self.streams.pop(request_id, None)
            elif index > have:
                self._on_gap(stream, now, again)
        return again

    def _scored(self, outputs: Outputs, now: float, again: list[ClientMessage]) -> dict[int, TokenStream]:
        """The streams, without those to which this message brings a token before their prompt is scored.

        For those it is a gap: the message with the scores was lost.
        """
        streams = self.streams
        request_ids = columns.unpack(columns.UINT64, outputs.request_ids)
        for request_id, token_id in zip(request_ids, columns.unpack_ids(outputs.token_ids), strict=True):
            if request_id not in self._unscored:
                continue
            stream = self.streams[request_id]
            if token_id == NO_TOKEN or not stream.num_missing_prompt_logprobs:
                self._unscored.discard(request_id)
                continue
            streams = {key: value for key, value in streams.items() if value is not stream}
            self._on_gap(stream, now, again)
        return streams

    def _on_gap(self, stream: TokenStream, now: float, again: list[ClientMessage]) -> None:
        """Submit again, once per gap: until the rows come again, more will come that are too high."""
        if not stream.gap:
            stream.gap = True
            self.gaps += 1
            again.append(self._submission(stream, now))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Submit).decode


def _broken_rule(request: Submit) -> InvalidRequest | None:
    """What a decoder would say to this request; costs 3 µs."""
    try:
        _decode(_encode(request))
    except msgspec.ValidationError as error:
        rule, _, place = str(error).partition(" - at ")
        position = re.match(r"`\$\[(\d+)\]", place)
        field = Submit.__struct_fields__[int(position[1]) - 1] if position else "request"
        return InvalidRequest(f"{field}: {rule.replace('`', '').lower()}", param=field)
    return None
