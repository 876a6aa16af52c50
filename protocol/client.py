"""EngineClient: attach to an engine core and stream tokens. The frontend uses it, and so may anyone.

    client = await EngineClient.attach(endpoint)
    async for batch in client.submit([1, 2, 3], SamplingParams(max_tokens=8)):
        print(batch.token_ids, batch.finish)

The registry holds the truth about each open stream and decides what is sent; this is the connection around
it: one socket, one event loop, one timer while something is awaited. When the engine core is replaced
(`reattach`), or a message was lost, the streams go on. Knows nothing of text.
"""

import asyncio
import itertools
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import zmq

from . import columns
from .curve import CurveKeys
from .errors import TernError, Unavailable
from .messages import (
    ClientMessage,
    Control,
    ControlResult,
    EngineFacts,
    EngineMessage,
    Finish,
    Outputs,
    Ping,
    Pong,
)
from .observation import Event, Inspect, Snapshot
from .registry import Registry
from .sampling import SamplingParams
from .sockets import HIGH_WATER_MARK, Dealer
from .stream import Parting, TokenBatch, TokenLogprob, TokenStream

__all__ = [
    "CurveKeys",
    "EngineClient",
    "Parting",
    "TokenBatch",
    "TokenLogprob",
    "TokenStream",
    "endpoint_file",
]

LOOK_AGAIN_S = 1.0
"""How often a client that waits for something looks whether it has waited too long."""


class EngineClient:
    """A connection to one engine core; belongs to one event loop."""

    def __init__(self, name: str = "client", incarnation: int = 0, curve: CurveKeys | None = None) -> None:
        """`curve`: the keys for an engine core at a `tcp://` endpoint."""
        self.attached = asyncio.Event()
        """Requests are taken; or the engine core has refused us, which `attach` raises."""
        self.on_event: Callable[[Event], None] = lambda event: None
        """Called with what befalls the engine core: recent events once attached, then each as it comes."""
        self._registry = Registry(name, incarnation, self._close_stream)
        self._streams = self._registry.streams
        self._curve = curve
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer: Dealer[EngineMessage, ClientMessage] | None = None
        self._unsent: deque[ClientMessage] = deque(maxlen=HIGH_WATER_MARK)
        """What the socket did not take. What falls off is lost: a Submit is missed, and sent again."""
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._nonces = itertools.count(1)
        self._follower: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ── connecting ──────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def attach(
        cls, address: str, *, name: str = "client", timeout_s: float = 60, curve: CurveKeys | None = None
    ) -> "EngineClient":
        """Connect and wait until a model is ready.

        `address` is an endpoint (`ipc://…`, or `tcp://…` with `curve`) or the path of a server's endpoint
        file, which is followed when the engine core is replaced. Raises Unavailable after `timeout_s`,
        also when the keys are not allowed; ProtocolMismatch and ValueError (`tcp://` without keys) at once.
        """
        client = cls(name, curve=curve)
        try:
            if "://" in address:
                client.reattach(address)
            else:
                client._follower = asyncio.create_task(client._follow(address))
            await asyncio.wait_for(client.attached.wait(), timeout_s)
            if client._registry.refusal is not None:
                raise client._registry.refusal
        except TimeoutError:
            await client.close()
            raise Unavailable(f"no engine core answered at {address} within {timeout_s:g} s") from None
        except (TernError, ValueError):
            await client.close()
            raise
        return client

    def reattach(self, endpoint: str) -> None:
        """Leave the engine core, if any, for the one at `endpoint`, and go on there with every stream."""
        self._disconnect()
        dealer: Dealer[EngineMessage, ClientMessage] = Dealer(self._context, EngineMessage)
        self._dealer = dealer
        asyncio.get_running_loop().add_reader(dealer.fileno(), self._receive)
        dealer.connect(endpoint, self._curve)
        self._send(self._registry.attach(time.monotonic()))
        self._on_attachment()

    async def close(self) -> None:
        """Abort every stream and disconnect."""
        if self._follower is not None:
            self._follower.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._send(self._registry.close_all())
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
        adapter: str = "",
        grammar: str = "",
        key: str = "",
        digest: str = "",
    ) -> TokenStream:
        """Start a request and return its stream. Errors of the engine core are raised while iterating.

        `adapter`, `grammar`, `key` and `digest`: see messages.Submit.
        """
        stream, messages = self._registry.submit(
            prompt_token_ids,
            sampling,
            time.monotonic(),
            resumed_token_ids=resumed_token_ids,
            priority=priority,
            timeout_s=timeout_s,
            tenant=tenant,
            cache_salt=cache_salt,
            adapter=adapter,
            grammar=grammar,
            key=key,
            digest=digest,
        )
        self._send(messages)
        self._watch()
        return stream

    async def embed(
        self,
        prompt_token_ids: Sequence[int],
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        tenant: str = "",
        cache_salt: str = "",
        adapter: str = "",
    ) -> "array[float]":
        """The prompt as a vector of length 1, float32. Raises the engine core's error; cancelling it aborts
        the request."""
        stream, messages = self._registry.submit(
            prompt_token_ids,
            SamplingParams(max_tokens=1, temperature=0),
            time.monotonic(),
            priority=priority,
            timeout_s=timeout_s,
            tenant=tenant,
            cache_salt=cache_salt,
            adapter=adapter,
            embed=True,
        )
        self._send(messages)
        self._watch()
        async with stream:
            async for _ in stream:
                pass
        if stream.finish is Finish.ABORT:
            raise Unavailable("the engine core ended this request before it was complete")
        return columns.unpack_floats(stream.embedding)

    async def ping(self, timeout_s: float = 5) -> Pong:
        """Ask the engine core's main loop for a sign of life and its statistics."""
        pong: Pong = await self._ask(lambda nonce: Ping(nonce), timeout_s)
        return pong

    async def inspect(self, timeout_s: float = 5) -> Snapshot:
        """A picture of the engine core's requests, KV blocks and recent steps. See observation.py."""
        snapshot: Snapshot = await self._ask(lambda nonce: Inspect(nonce), timeout_s)
        return snapshot

    async def control(self, action: Any, timeout_s: float = 30) -> ControlResult:
        """Run an operator's action, see messages.Control."""
        result: ControlResult = await self._ask(lambda nonce: Control(nonce, action), timeout_s)
        return result

    @property
    def facts(self) -> EngineFacts | None:
        """What the engine core has said of the model; None before."""
        return self._registry.facts

    @property
    def epoch(self) -> int:
        return self._registry.epoch

    @property
    def suspended(self) -> bool:
        """The engine core is there and no worker is: requests wait."""
        return self._registry.suspended

    @property
    def gaps(self) -> int:
        """Losses that showed in what came after."""
        return self._registry.gaps

    @property
    def resubmitted(self) -> int:
        """Submits of streams that were submitted before."""
        return self._registry.resubmitted

    @property
    def num_streams(self) -> int:
        """Requests that have not had their last message."""
        return len(self._streams)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, make: Any, timeout_s: float) -> Any:
        nonce = next(self._nonces)
        answer = self._answers[nonce] = asyncio.get_running_loop().create_future()
        self._send([make(nonce)])
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

    def _send(self, messages: Iterable[ClientMessage]) -> None:
        dealer = self._dealer
        if dealer is None or not messages:
            return  # all that matters is submitted again once there is an engine core
        for message in messages:
            if self._unsent or not dealer.send(message):
                self._unsent.append(message)
        if dealer.readable():  # sending may have eaten the descriptor's edge
            asyncio.get_running_loop().call_soon(self._receive)

    def _receive(self) -> None:
        dealer = self._dealer
        if dealer is None:
            return
        while messages := dealer.drain():
            now = time.monotonic()
            for message in messages:
                match message:
                    case Outputs():
                        self._send(self._registry.handle(message, now))
                    case Event():
                        self.on_event(message)
                    case Pong() | ControlResult() | Snapshot():
                        if (answer := self._answers.get(message.nonce)) is not None and not answer.done():
                            answer.set_result(message)
                    case _:
                        self._send(self._registry.handle(message, now))
                        self._on_attachment()
        while self._unsent and dealer.send(self._unsent[0]):
            self._unsent.popleft()

    def _on_attachment(self) -> None:
        if self._registry.attached or self._registry.refusal is not None:
            self.attached.set()
        else:
            self.attached.clear()
        self._watch()

    def _watch(self) -> None:
        if self._timer is None and self._dealer is not None and self._registry.waiting:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._send(self._registry.stalled(time.monotonic()))
        self._watch()

    def _close_stream(self, stream: TokenStream, parting: Parting) -> None:
        self._send(self._registry.close(stream, parting))


def endpoint_file(run_dir: str) -> str:
    """Where a server writes its engine core's current endpoint: an address for `attach`."""
    return os.path.join(run_dir, "endpoint")
