"""A million mutated frames a run: the decoders, a client's registry and a running engine core stay whole.

The same frames every time, unless FUZZ_SEED says otherwise; a failure names seed and frame.
"""

import asyncio
import os
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, get_args

import msgspec
import pytest
import zmq

from engine_core.invariants import check
from protocol import columns
from protocol.client import EngineClient, TokenStream
from protocol.control import PeerGone
from protocol.messages import (
    MOST_TIMEOUT_S,
    PROTOCOL_VERSION,
    Abort,
    Attach,
    ClientMessage,
    Control,
    EngineMessage,
    Leave,
    Ping,
    Submit,
)
from protocol.registry import Registry
from protocol.sampling import MAX_SEED, MAX_TOKENS, SamplingParams
from protocol.sockets import DECODE_ERRORS, Dealer, fingerprint
from tests.conftest import DEADLINE_S
from tests.engine_core.conftest import MiniStack
from tests.fuzz.frames import SAMPLES, Mutator
from tests.simulation.simulator import alone

SEED = os.environ.get("FUZZ_SEED", "1")
NUM_FRAMES = {direction: 200_000 if "core" in direction else 100_000 for direction in SAMPLES}
NUM_SENT = 20_000
MEBIBYTE = 1 << 20

encode = msgspec.msgpack.encode


def test_there_is_a_sample_of_every_message() -> None:
    assert sum(NUM_FRAMES.values()) == 1_000_000
    for union, messages in SAMPLES.values():
        assert {type(message) for message in messages} == set(get_args(union))
        decoder = msgspec.msgpack.Decoder(union)
        assert [decoder.decode(encode(message)) for message in messages] == messages


@pytest.mark.parametrize("direction", SAMPLES)
def test_decoders_raise_nothing_undeclared(direction: str) -> None:
    union, messages = SAMPLES[direction]
    decode, mutate = msgspec.msgpack.Decoder(union).decode, Mutator(messages, SEED)
    decoded, frame, number = 0, b"", 0
    try:
        for number in range(NUM_FRAMES[direction]):  # noqa: B007
            frame = mutate()
            try:
                message = decode(frame)
            except DECODE_ERRORS:
                continue
            decoded += 1
            again = encode(message)
            assert encode(decode(again)) == again
    except BaseException as error:
        error.add_note(f"FUZZ_SEED={SEED}, frame {number} {direction}: {frame.hex()}")
        raise
    assert NUM_FRAMES[direction] // 100 < decoded < NUM_FRAMES[direction] * 3 // 4  # neither all nor none


def hostile_frames(union: Any) -> Iterator[tuple[str, bytes]]:
    """10 MB each, in every place where a list or a text may be."""
    items = b"\xdd" + (10 * MEBIBYTE).to_bytes(4, "big") + b"\x90" * (10 * MEBIBYTE)
    numbers = items.replace(b"\x90", b"\x01")
    text = b"\xdb" + (10 * MEBIBYTE).to_bytes(4, "big") + b"x" * (10 * MEBIBYTE)
    yield "nothing but lists", items
    yield "nested lists", b"\x91" * (10 * MEBIBYTE)
    yield "pairs", b"\xdf" + (5 * MEBIBYTE).to_bytes(4, "big") + b"\x01\x90" * (5 * MEBIBYTE)
    for kind in get_args(union):
        sample = next(
            message for _, all_of in SAMPLES.values() for message in all_of if type(message) is kind
        )
        head, *fields = [encode(field) for field in msgspec.msgpack.decode(encode(sample))]
        for place in range(len(fields)):
            for value in (items, numbers, text):
                body = b"".join((head, *fields[:place], value, *fields[place + 1 :]))
                yield f"{kind.__name__}, field {place}", bytes((0x90 + 1 + len(fields),)) + body


@pytest.mark.parametrize("direction", [name for name in SAMPLES if "core" in name])
def test_ten_hostile_megabytes_cost_little(direction: str) -> None:
    """The most that is allocated is one text, found to be too long, and quoted where it should be a choice.

    Without types, a list of empty lists would take 730 MB. What appends to a list of fields is skipped.
    """
    union, _ = SAMPLES[direction]
    decode = msgspec.msgpack.Decoder(union).decode
    for name, frame in hostile_frames(union):
        tracemalloc.start()
        try:
            with suppress(*DECODE_ERRORS):
                decode(frame)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * MEBIBYTE, name


def test_a_registry_survives_whatever_decodes() -> None:
    union, messages = SAMPLES["engine core to client"]
    decode, mutate = msgspec.msgpack.Decoder(union).decode, Mutator(messages, SEED)
    registry = Registry("fuzz", 0, lambda stream, detach: None)
    handled, frame = 0, b""
    scored = SamplingParams(logprobs=2, prompt_logprobs=2)
    while handled < NUM_SENT:
        try:
            frame = mutate()
            message: EngineMessage = decode(frame)
        except DECODE_ERRORS:
            continue
        handled += 1
        if handled % 50 == 1:
            registry = Registry("fuzz", 0, lambda stream, detach: None)
            registry.attach(0.0)
            for sampling in (SamplingParams(), scored, scored):
                registry.submit([1, 2], sampling, 0.0)
        try:
            for answer in registry.handle(message, float(handled)) + registry.stalled(float(handled)):
                encode(answer)
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={SEED}, message {handled}: {frame.hex()}")
            raise


# ── a running engine core ───────────────────────────────────────────────────────────────────────


def absurd(rng: random.Random) -> ClientMessage:
    """Valid by its type, and nothing that a frontend would send."""
    some_id = rng.choice((0, 1, 2, 3, rng.randrange(50), (1 << 63) - 1))

    def tokens() -> bytes:
        usual = [rng.randrange(512) for _ in range(rng.choice((0, 1, 5, 40, 63, 64, 200)))]
        odd = rng.choice(([], [], [], [-1], [512], [(1 << 31) - 1], [-(1 << 31)]))
        return columns.pack_ids([*usual, *odd]) + (b"\0" if rng.random() < 0.05 else b"")

    match rng.randrange(10):
        case 0:
            return Abort(tuple(rng.choices(range(60), k=rng.randrange(8))))
        case 1:
            return Leave(tuple(rng.choices(range(60), k=rng.randrange(8))))
        case 2:
            return Ping(rng.choice((0, (1 << 63) - 1)))
        case 3:
            return Control(some_id, "reset_prefix_cache")
        case 4:
            version = rng.choice((PROTOCOL_VERSION, PROTOCOL_VERSION, 0))
            return Attach(version, rng.choice((fingerprint(), "")), "\0\x1b[31m" * 9, STRANGER)
        case _:
            return Submit(
                request_id=some_id,
                prompt_token_ids=tokens(),
                sampling=SamplingParams(
                    max_tokens=rng.choice((1, 3, MAX_TOKENS)),
                    min_tokens=rng.choice((0, 0, 7, MAX_TOKENS)),
                    temperature=rng.choice((0.0, 1e-38, 1.0, 100.0)),
                    top_p=rng.choice((1e-300, 1.0)),
                    top_k=rng.choice((0, 1, (1 << 31) - 1)),
                    repetition_penalty=rng.choice((1e-300, 1.0, 100.0)),
                    seed=rng.choice((0, MAX_SEED)),
                    stop_token_ids=rng.choice(((), ((1 << 31) - 1,), tuple(range(256)))),
                    logit_bias=rng.choice(((), (), ((511, 100.0),) * 1024, (((1 << 31) - 1, -100.0),))),
                    logprobs=rng.choice((None, 0, 20)),
                    prompt_logprobs=rng.choice((None, None, 20)),
                ),
                resumed_token_ids=rng.choice((b"", b"", tokens())),
                priority=rng.choice((0, -(1 << 31), (1 << 31) - 1)),
                timeout_s=rng.choice((None, None, 5e-324, MOST_TIMEOUT_S)),
                tenant=rng.choice(("", "t\0")),
                cache_salt=rng.choice(("", "s" * 256)),
                adapter=rng.choice(("", "", "", "x")),
                grammar=rng.choice(("", "", "", "{" * 1000)),
                key=rng.choice(("", "", "k", "l")),
                digest=rng.choice(("", "d")),
                again=rng.random() < 0.5,
            )


STRANGER = 999
"""Incarnation that those who send such things claim to have, so that their death can be reported."""


class Strangers:
    """Clients that read what they are answered, as much as is there. The last one never attaches."""

    def __init__(self, endpoint: str, num: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealers: list[Dealer[EngineMessage, Any]] = [
            Dealer(self._context, EngineMessage) for _ in range(num)
        ]
        for dealer in self._dealers:
            dealer.connect(endpoint)

    def send(self, number: int, frame: bytes) -> None:
        dealer = self._dealers[number % len(self._dealers)]
        assert dealer.socket.poll(int(DEADLINE_S * 1000), zmq.POLLOUT)
        dealer.socket.send(frame)
        dealer.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Waits until all has left, unless something went wrong."""
        for dealer in self._dealers:
            dealer.close(linger_ms=0 if kind else int(DEADLINE_S * 1000))
        self._context.term()


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[MiniStack]:
    stack = MiniStack(tmp_path, max_model_len=64)
    stack.start_engine()
    stack.start_worker()
    yield stack
    stack.stop()


@pytest.fixture
async def client(stack: MiniStack) -> AsyncIterator[EngineClient]:
    assert stack.engine_at is not None
    client = await EngineClient.attach(stack.engine_at.clients_endpoint)
    yield client
    await client.close()


async def answer(client: EngineClient, prompt: list[int]) -> list[int]:
    """What a good client gets, which must be what it would get alone."""
    sampling = SamplingParams(max_tokens=20, temperature=1, seed=prompt[0])
    stream: TokenStream = client.submit(prompt, sampling, priority=-(1 << 31))
    async with asyncio.timeout(DEADLINE_S):
        async for _ in stream:
            pass
    assert stream.token_ids == alone(Submit(1, columns.pack_ids(prompt), sampling), 64)
    return stream.token_ids


async def whole(stack: MiniStack, client: EngineClient) -> None:
    """It serves; nothing of the strangers is left; the invariants hold."""
    assert stack.engine_channel is not None
    assert stack.engine is not None
    await answer(client, [7, 8, 9])
    stack.engine_channel.send(PeerGone(STRANGER))
    async with asyncio.timeout(DEADLINE_S):
        while (stats := (await client.ping(DEADLINE_S)).stats).num_running or stats.num_waiting:
            pass
    await answer(client, [9, 8, 7])
    stack.stop_engine()
    await asyncio.to_thread(stack.threads[0].join, DEADLINE_S)
    assert not stack.threads[0].is_alive()
    scheduler = stack.engine.scheduler
    assert scheduler is not None
    check(scheduler)


async def test_an_engine_core_serves_on_among_mutated_frames(stack: MiniStack, client: EngineClient) -> None:
    assert stack.engine_at is not None
    union, messages = SAMPLES["client to engine core"]
    decode, mutate = msgspec.msgpack.Decoder(union).decode, Mutator(messages, SEED)
    undecodable = 0
    with Strangers(stack.engine_at.clients_endpoint, 3) as strangers:
        for number in range(NUM_SENT):
            frame = mutate()
            try:
                decode(frame)
            except DECODE_ERRORS:
                undecodable += 1
            strangers.send(number, frame)
            if number % 4000 == 0:
                await answer(client, [number % 512, 3])
    async with asyncio.timeout(DEADLINE_S):
        while (await client.ping(DEADLINE_S)).stats.dropped_frames < undecodable:
            pass
    assert (await client.ping(DEADLINE_S)).stats.dropped_frames == undecodable
    await whole(stack, client)


async def test_an_engine_core_serves_on_among_absurd_messages(stack: MiniStack, client: EngineClient) -> None:
    assert stack.engine_at is not None
    rng = random.Random(SEED)
    with Strangers(stack.engine_at.clients_endpoint, 3) as strangers:
        for number in range(2):
            strangers.send(number, encode(Attach(PROTOCOL_VERSION, fingerprint(), "fuzz", STRANGER)))
        for number in range(NUM_SENT // 4):
            strangers.send(number, encode(absurd(rng)))
            if number % 500 == 0:
                await answer(client, [number % 512, 4])
    await whole(stack, client)


async def test_an_engine_core_serves_on_among_frames_at_its_workers_door(
    stack: MiniStack, client: EngineClient
) -> None:
    """Of all but WorkerReady, with which anyone who can enter the folder is a worker."""
    assert stack.engine_at is not None
    _, messages = SAMPLES["worker to engine core"]
    mutate = Mutator(messages[1:], SEED)
    with Strangers(stack.engine_at.workers_endpoint, 2) as strangers:
        for number in range(NUM_SENT // 4):
            strangers.send(number, mutate())
            if number % 1000 == 0:
                await answer(client, [number % 512, 5])
    await whole(stack, client)
