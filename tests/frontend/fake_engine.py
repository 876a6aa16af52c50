"""FakeEngine: an engine core that says what a test tells it to, on a real socket."""

import asyncio
from collections.abc import Callable
from typing import Any, assert_never

import msgspec
import zmq

from protocol import columns
from protocol.errors import KeyReused
from protocol.messages import (
    NO_TOKEN,
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    ClientMessage,
    Control,
    ControlResult,
    EngineFacts,
    EngineMessage,
    EngineStats,
    Finish,
    Leave,
    LogprobBlock,
    Outputs,
    Ping,
    Pong,
    PromptLogprobs,
    Refused,
    Submit,
    Suspended,
)
from protocol.observation import Event, Inspect, Snapshot
from protocol.sockets import Router, fingerprint

DEADLINE_S = 60.0
"""For anything that a test waits for: far more than it takes, even on a machine that is busy."""


class FakeEngine:
    """An engine core without a worker: answers every Submit with `answer`, one token a message.

    `pause_at` holds every request back when it has that many tokens, until `resume`. `row` and `refuse`
    say anything at all. Log-probability of token t is -t/1000; the likeliest of width w are t, t+1, ….
    """

    def __init__(self, endpoint: str, facts: EngineFacts) -> None:
        self.endpoint = endpoint
        self.facts = facts
        self.epoch = 1
        self.answer: list[int] = []
        self.answers: dict[int, list[int]] = {}
        """Of requests with these seeds, instead of `answer`."""
        self.finish = Finish.LENGTH
        self.tokens_per_message = 1
        self.pause_at: int | None = None
        self.silent_pings = False
        self.snapshot = Snapshot(0, 1)
        self.inspected = 0
        self.num_attached = 0
        self.num_cached = 0
        self.refuse_next: Refused | None = None
        self.submits: list[Submit] = []
        self.aborted: set[int] = set()
        self.left: set[int] = set()
        self._digests: dict[tuple[str, str], str] = {}
        self._progress: dict[int, int] = {}
        self._peer = b""
        self._context: zmq.Context[Any] = zmq.Context()
        self._router: Router[ClientMessage, EngineMessage] = Router(self._context, ClientMessage)
        self._router.bind(endpoint)
        self._changed = asyncio.Condition()
        self._notifier: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(self._router.fileno(), self._receive)

    @property
    def closed(self) -> bool:
        return bool(self._router.socket.closed)

    def close(self) -> None:
        """Gone without a word, as after kill -9."""
        asyncio.get_running_loop().remove_reader(self._router.fileno())
        self._router.close()
        self._context.term()

    def resume(self, pause_at: int | None = None) -> None:
        """Go on, up to so many tokens."""
        self.pause_at = pause_at
        live = {
            submit.request_id: submit
            for submit in self.submits
            if submit.request_id not in self.aborted | self.left
        }
        for submit in live.values():
            self._answer(submit, self._progress[submit.request_id])

    def row(self, request_id: int, index: int, token_id: int, finish: Finish = Finish.NONE) -> None:
        self._send(_outputs(request_id, index, [token_id], finish))

    def suspend(self) -> None:
        """As when its worker dies."""
        self._send(Suspended())

    def attached(self) -> None:
        """As when a worker is there again."""
        self._send(Attached(PROTOCOL_VERSION, fingerprint(), self.epoch, self.facts))

    def tell(self, event: Event) -> None:
        self._send(event)

    def refuse(self, request_id: int, code: str, message: str, *, retryable: bool = False) -> None:
        self._send(Refused(request_id, code, message, retryable))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what has been received makes it true."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(condition), DEADLINE_S)

    def _send(self, message: EngineMessage) -> None:
        assert self._router.send(self._peer, message)
        if self._router.readable():
            asyncio.get_running_loop().call_soon(self._receive)

    def _receive(self) -> None:
        if self._router.socket.closed:
            return
        while messages := self._router.drain():
            for self._peer, message in messages:
                self._handle(message)
            self._notifier = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _handle(self, message: ClientMessage) -> None:
        match message:
            case Attach():
                self.num_attached += 1
                self.attached()
            case Submit():
                self.submits.append(message)
                name = (message.tenant, message.key)
                if message.key and self._digests.setdefault(name, message.digest) != message.digest:
                    self.refuse(message.request_id, KeyReused.code, "this Idempotency-Key belongs to another")
                elif self.refuse_next is not None:
                    refusal, self.refuse_next = self.refuse_next, None
                    self._send(msgspec.structs.replace(refusal, request_id=message.request_id))
                elif message.embed:
                    if self.pause_at is None:
                        self._send(_vector(message, self.facts.embedding_size))
                else:
                    self._answer(message, len(message.resumed_token_ids) // 4)
            case Abort():
                self.aborted.update(message.request_ids)
            case Leave():
                self.left.update(message.request_ids)
            case Ping():
                if not self.silent_pings:
                    stats = EngineStats(num_running=3, num_waiting=2, num_free_blocks=25, num_blocks=100)
                    self._send(Pong(message.nonce, self.epoch, stats))
            case Inspect():
                self.inspected += 1
                if not self.silent_pings:
                    self._send(msgspec.structs.replace(self.snapshot, nonce=message.nonce))
            case Control():
                self._send(ControlResult(message.nonce, True))
            case _:
                assert_never(message)

    def _answer(self, submit: Submit, start: int) -> None:
        answer = self.answers.get(submit.sampling.seed, self.answer)
        limit = min(submit.sampling.max_tokens, len(answer))
        stop = limit if self.pause_at is None else min(limit, self.pause_at)
        self._progress[submit.request_id] = stop
        for index in range(start, stop, self.tokens_per_message):
            tokens = answer[index : min(index + self.tokens_per_message, stop)]
            last = index + len(tokens) == limit
            early = limit < len(answer)
            finish = (Finish.LENGTH if early else self.finish) if last else Finish.NONE
            self._send(_outputs(submit.request_id, index, tokens, finish, submit, self.num_cached))


def _outputs(
    request_id: int,
    index: int,
    tokens: list[int],
    finish: Finish,
    submit: Submit | None = None,
    num_cached: int = 0,
) -> Outputs:
    width = submit.sampling.logprobs if submit is not None else None
    prompt_width = submit.sampling.prompt_logprobs if submit is not None else None
    prompt: tuple[PromptLogprobs, ...] = ()
    if submit is not None and prompt_width is not None and index == 0:
        ids = columns.unpack_ids(submit.prompt_token_ids)[1:]
        prompt = (PromptLogprobs(request_id, 1, fake_logprobs(list(ids), prompt_width)),)
    count = len(tokens)
    named = submit.sampling.logprob_token_ids if submit is not None else ()
    return Outputs(
        epoch=1,
        step=index,
        request_ids=columns.pack(columns.UINT64, [request_id] * count),
        indexes=columns.pack(columns.UINT32, range(index, index + count)),
        token_ids=columns.pack_ids(tokens),
        finishes=bytes([*[0] * (count - 1), finish]),
        logprobs=fake_logprobs(tokens, width, named) if width is not None else None,
        started=((request_id, num_cached),) if index == 0 and NO_TOKEN not in tokens else (),
        prompt_logprobs=prompt,
    )


def _vector(submit: Submit, size: int) -> Outputs:
    """Of length 1: (3, 4, 0, …) / 5 with the last id's sign."""
    sign = -1 if columns.unpack_ids(submit.prompt_token_ids)[-1] % 2 else 1
    vector = columns.pack(columns.FLOAT32, [0.6 * sign, 0.8 * sign, *[0.0] * (size - 2)])
    row = _outputs(submit.request_id, 0, [NO_TOKEN], Finish.STOP)
    return msgspec.structs.replace(row, embeddings=((submit.request_id, vector),))


def fake_logprobs(tokens: list[int], width: int, named: tuple[int, ...] = ()) -> LogprobBlock:
    if named:
        return LogprobBlock(
            rows=columns.pack(columns.UINT32, range(len(tokens))),
            width=len(named),
            chosen=columns.pack(columns.FLOAT32, [-token / 1000 for token in tokens]),
            top_ids=columns.pack_ids(named * len(tokens)),
            top_values=columns.pack(columns.FLOAT32, [-one / 1000 for one in named] * len(tokens)),
        )
    return LogprobBlock(
        rows=columns.pack(columns.UINT32, range(len(tokens))),
        width=width,
        chosen=columns.pack(columns.FLOAT32, [-token / 1000 for token in tokens]),
        top_ids=columns.pack_ids([token + i for token in tokens for i in range(width)]),
        top_values=columns.pack(
            columns.FLOAT32, [-(token + i) / 1000 for token in tokens for i in range(width)]
        ),
    )
