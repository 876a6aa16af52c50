"""The engine core's socket: strangers that send rubbish, and lines that lose, double and swap frames."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from protocol import columns
from protocol.client import EngineClient
from protocol.messages import PROTOCOL_VERSION, Attach, AttachRefused, EngineMessage, Submit
from protocol.sampling import SamplingParams
from protocol.sockets import fingerprint
from tests.faults.at_rest import Core
from tests.faults.load import Load, many
from tests.faults.shim import Direction, Shim

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene
    from tests.faults.oracles import Scene

LENGTH = 400
COUNT = 12

encode = msgspec.msgpack.Encoder().encode
RUBBISH = [
    b"",
    b"\x00",
    bytes(range(256)) * 4,
    b"cos\nsystem\n(S'true'\ntR.",
    encode(["submit", 1]),
    encode(Submit(1, columns.pack_ids([1, 2, 3]), SamplingParams()))[:-3],
    encode(["attach", -1, "x", "y"]),
    encode({"submit": 1}),
    b"\x91" * 100_000,
    b"\xc6\x40\x00\x00\x00" + b"a claim of 1 GiB",
    b"\xdd\x40\x00\x00\x00" + b"an array of 2^30",
]


async def test_rubbish(scene: "NewScene") -> None:
    """Scenario 35: garbage, truncated frames, claims of 1 GiB and another version, under load."""
    async with scene() as one:
        endpoint = endpoint_of(one)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

        def strike() -> AttachRefused:
            with context.socket(zmq.DEALER) as stranger:
                stranger.connect(endpoint)
                for frame in RUBBISH:
                    stranger.send(frame)
                stranger.send_multipart([b"two", b"frames"])
                stranger.send(encode(Attach(PROTOCOL_VERSION + 7, fingerprint(), "stranger")))
                refused = msgspec.msgpack.decode(stranger.recv(), type=EngineMessage)
                assert isinstance(refused, AttachRefused)
            for greeting in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03" + bytes(52)):
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(endpoint.removeprefix("ipc://"))
                    with suppress(OSError):
                        raw.sendall(greeting + b"\x02" + (1 << 30).to_bytes(8, "big") + bytes(100))
            return refused

        async def fault(load: Load) -> None:
            await load.begun()
            refused = await asyncio.to_thread(strike)
            assert refused.protocol_version == PROTOCOL_VERSION

        await one.load(many(32, 300), fault)
        context.term()
        async with Core.of(one.stack) as core:
            assert (await core.stats()).dropped_frames == len(RUBBISH) + 1


def endpoint_of(one: "Scene") -> str:
    return Path(one.stack.endpoint_file).read_text().strip()


async def read(client: EngineClient, submit: Submit) -> list[int]:
    """Its token ids; each with its log-probability, and one end."""
    ends, logprobs = 0, 0
    stream = client.submit(columns.unpack_ids(submit.prompt_token_ids), submit.sampling)
    async for batch in stream:
        ends += bool(batch.finish)
        logprobs += len(batch.logprobs or ())
    assert (ends, logprobs) == (1, LENGTH)
    return stream.token_ids


async def over(one: "Scene", tmp_path: Path, requests: Direction, answers: Direction) -> EngineClient:
    """The same streams over a good line and a bad one. The client of the latter, for its counters."""
    endpoint = endpoint_of(one)
    submits = [
        Submit(
            n,
            columns.pack_ids([n + 5, 9, 9, n]),
            SamplingParams(max_tokens=LENGTH, temperature=n % 2, seed=n, ignore_eos=True, logprobs=1),
        )
        for n in range(COUNT)
    ]
    with Shim(endpoint, f"ipc://{tmp_path}/shim", requests, answers) as shim:
        good, bad = await EngineClient.attach(endpoint), await EngineClient.attach(shim.endpoint)
        try:
            expected = await asyncio.gather(*(read(good, submit) for submit in submits))
            assert await asyncio.gather(*(read(bad, submit) for submit in submits)) == expected
            assert bad.num_streams == 0
        finally:
            await good.close()
            await bad.close()
    return bad


async def test_doubled_and_swapped(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 37: answers arrive twice, and in another order: no token is doubled, none is lost."""
    async with scene() as one:
        answers = Direction(double_every=7, swap_every=40)
        client = await over(one, tmp_path, Direction(double_every=3), answers)
        assert answers.doubled > 0
        assert answers.swapped > 0
        assert client.gaps > 0


async def test_lost(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 38: each hundredth frame is lost, a Submit first of all: all streams end as they should."""
    async with scene() as one:
        answers = Direction(drop_every=100)
        client = await over(one, tmp_path, Direction(drop_every=100, count=94), answers)
        assert answers.dropped > 0
        assert client.resubmitted > 0
        async with Core.of(one.stack) as core:
            assert (await core.stats()).resubmissions > 0
