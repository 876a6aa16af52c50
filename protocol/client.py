"""EngineClient: attach to an engine core and stream tokens. The frontend uses it, and so may anyone.

    client = await EngineClient.attach(endpoint)
    async for batch in client.submit([1, 2, 3], SamplingParams(max_tokens=8)):
        print(batch.token_ids, batch.finish)

The client holds the truth about each open stream: its prompt, parameters and the ids it has. When the
engine core is replaced (`reattach`), or a message was lost, it submits the stream again with those ids,
and the stream goes on. It takes output i only if it has exactly i tokens: lower is a duplicate, higher
is a gap. Knows nothing of text.
"""

import asyncio
import itertools
import os
from collections.abc import Sequence
from typing import Any, assert_never

import zmq

from . import columns
from .errors import BY_CODE, InternalError, ProtocolMismatch, TernError, Unavailable
from .messages import (
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    AttachRefused,
    ClientMessage,
    Control,
    ControlResult,
    EngineFacts,
    EngineMessage,
    Outputs,
    Ping,
    Pong,
    Refused,
    Submit,
    Suspended,
)
from .sampling import SamplingParams
from .sockets import Dealer, fingerprint
from .stream import TokenBatch, TokenLogprob, TokenStream, unpack_logprobs

__all__ = ["EngineClient", "TokenBatch", "TokenLogprob", "TokenStream", "endpoint_file"]


class EngineClient:
    """A connection to one engine core; belongs to one event loop."""

    def __init__(self, name: str = "client", incarnation: int = 0) -> None:
        self.facts: EngineFacts | None = None
        self.epoch = 0
        self.attached = asyncio.Event()
        self.gaps = 0
        self.resubmitted = 0
        self._name = name
        self._incarnation = incarnation
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer: Dealer[EngineMessage, ClientMessage] | None = None
        self._unsent: list[ClientMessage] = []
        self._streams: dict[int, TokenStream] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._refusal: TernError | None = None
        self._follower: asyncio.Task[None] | None = None

    # ── connecting ──────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def attach(cls, address: str, *, name: str = "client", timeout_s: float = 60) -> "EngineClient":
        """Connect and wait until a model is ready.

        `address` is an endpoint (`ipc://…`) or the path of a server's endpoint file, which is followed
        when the engine core is replaced. Raises Unavailable after `timeout_s`, ProtocolMismatch at once.
        """
        client = cls(name)
        if "://" in address:
            client.reattach(address)
        else:
            client._follower = asyncio.create_task(client._follow(address))
        try:
            await asyncio.wait_for(client.attached.wait(), timeout_s)
            if client._refusal is not None:
                raise client._refusal
        except TimeoutError:
            await client.close()
            raise Unavailable(f"no engine core answered at {address} within {timeout_s:g} s") from None
        except TernError:
            await client.close()
            raise
        return client

    def reattach(self, endpoint: str) -> None:
        """Leave the engine core, if any, for the one at `endpoint`, and go on there with every stream."""
        self._disconnect()
        self.attached.clear()
        dealer: Dealer[EngineMessage, ClientMessage] = Dealer(self._context, EngineMessage)
        dealer.connect(endpoint)
        self._dealer = dealer
        asyncio.get_running_loop().add_reader(dealer.fileno(), self._receive)
        self._send(Attach(PROTOCOL_VERSION, fingerprint(), self._name, self._incarnation))

    async def close(self) -> None:
        """Abort every stream and disconnect."""
        if self._follower is not None:
            self._follower.cancel()
        if self._dealer is not None and self._streams:
            self._send(Abort(tuple(self._streams)))
        self._streams.clear()
        self._disconnect(linger_ms=200)
        self._context.term()

    # ── using ───────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        resumed_token_ids: Sequence[int] = (),
        priority: int = 0,
        timeout_s: float | None = None,
        tenant: str = "",
        cache_salt: str = "",
    ) -> TokenStream:
        """Start a request and return its stream. Errors of the engine core are raised while iterating."""
        request = Submit(
            request_id=next(self._ids),
            prompt_token_ids=columns.pack_ids(prompt_token_ids),
            sampling=sampling,
            resumed_token_ids=columns.pack_ids(resumed_token_ids),
            priority=priority,
            timeout_s=timeout_s,
            tenant=tenant,
            cache_salt=cache_salt,
        )
        stream = TokenStream(request, self._drop)
        self._streams[request.request_id] = stream
        if self.attached.is_set():
            self._send(request)
        return stream

    async def ping(self, timeout_s: float = 5) -> Pong:
        """Ask the engine core's main loop for a sign of life and its statistics."""
        pong: Pong = await self._ask(lambda nonce: Ping(nonce), timeout_s)
        return pong

    async def control(self, action: Any, timeout_s: float = 30) -> ControlResult:
        """Run an operator's action, see messages.Control."""
        result: ControlResult = await self._ask(lambda nonce: Control(nonce, action), timeout_s)
        return result

    @property
    def num_streams(self) -> int:
        """Requests that have not had their last message."""
        return len(self._streams)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, make: Any, timeout_s: float) -> Any:
        nonce = next(self._ids)
        answer = self._answers[nonce] = asyncio.get_running_loop().create_future()
        self._send(make(nonce))
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise Unavailable(f"the engine core did not answer within {timeout_s:g} s") from None
        finally:
            del self._answers[nonce]

    async def _follow(self, path: str) -> None:
        known = ""
        while True:
            try:
                with open(path) as file:
                    endpoint = file.read().strip()
            except OSError:
                endpoint = known
            if endpoint and endpoint != known:
                known = endpoint
                self.reattach(endpoint)
            await asyncio.sleep(0.1)

    def _disconnect(self, linger_ms: int = 0) -> None:
        if self._dealer is not None:
            asyncio.get_running_loop().remove_reader(self._dealer.fileno())
            self._dealer.close(linger_ms)
            self._dealer = None
        self._unsent.clear()

    def _send(self, message: ClientMessage) -> None:
        dealer = self._dealer
        if dealer is None:
            return  # everything that matters is submitted again on Attached
        if self._unsent or not dealer.send(message):
            self._unsent.append(message)
        if dealer.readable():  # sending may have eaten the descriptor's edge
            asyncio.get_running_loop().call_soon(self._receive)

    def _receive(self) -> None:
        dealer = self._dealer
        if dealer is None:
            return
        while messages := dealer.drain():
            for message in messages:
                self._handle(message)
        while self._unsent and dealer.send(self._unsent[0]):
            del self._unsent[0]

    def _handle(self, message: EngineMessage) -> None:
        match message:
            case Outputs():
                self._take(message)
            case Attached():
                self._on_attached(message)
            case Refused():
                if (stream := self._streams.pop(message.request_id, None)) is not None:
                    kind = BY_CODE.get(message.code, InternalError)
                    stream.fail(kind(message.message, param=message.param or None))
            case Pong() | ControlResult():
                if (answer := self._answers.get(message.nonce)) is not None and not answer.done():
                    answer.set_result(message)
            case Suspended():
                pass
            case AttachRefused():
                self._refusal = ProtocolMismatch(message.message)
                for stream in self._streams.values():
                    stream.fail(self._refusal)
                self._streams.clear()
                self.attached.set()
            case _:
                assert_never(message)

    def _on_attached(self, message: Attached) -> None:
        self.facts, self.epoch = message.facts, message.epoch
        if self.attached.is_set():
            return  # a new epoch of the same engine core, which still has our requests
        self.attached.set()
        for stream in list(self._streams.values()):
            self._resubmit(stream)

    def _resubmit(self, stream: TokenStream) -> None:
        self.resubmitted += 1
        self._send(stream.resumption())

    def _drop(self, stream: TokenStream) -> None:
        if self._streams.pop(stream.request_id, None) is not None:
            self._send(Abort((stream.request_id,)))

    def _take(self, outputs: Outputs) -> None:
        """The hot path: one call per engine step."""
        streams = self._streams
        for request_id, cached in outputs.started:
            stream = streams.get(request_id)
            if stream is not None and not stream.token_ids:  # a resumed one counts its first start only
                stream.num_cached_tokens = cached
        for prompt in outputs.prompt_logprobs:
            if (stream := streams.get(prompt.request_id)) is not None:
                for offset, logprob in unpack_logprobs(prompt.block):
                    stream.prompt_logprobs[prompt.first_position + offset] = logprob
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
                    del streams[request_id]
            elif index > have and not stream.gap:
                stream.gap = True
                self.gaps += 1
                self._resubmit(stream)


def endpoint_file(run_dir: str) -> str:
    """Where a server writes its engine core's current endpoint: an address for `attach`."""
    return os.path.join(run_dir, "endpoint")
