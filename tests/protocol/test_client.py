"""EngineClient on a real socket, against an engine core that says what a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol import columns
from protocol.client import EngineClient, Parting, TokenStream
from protocol.errors import Unavailable
from protocol.messages import (
    PROTOCOL_VERSION,
    Abort,
    Attach,
    Attached,
    ClientMessage,
    EngineFacts,
    EngineMessage,
    Finish,
    Leave,
    Outputs,
    Submit,
    Suspended,
)
from protocol.sampling import SamplingParams
from protocol.sockets import Router, fingerprint
from tests.conftest import DEADLINE_S

LONG = SamplingParams(max_tokens=100)


class Core:
    """Answers nothing by itself, and keeps what it got."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.received: list[ClientMessage] = []
        self._peer = b""
        self._context: zmq.Context[Any] = zmq.Context()
        self._router: Router[ClientMessage, EngineMessage] = Router(self._context, ClientMessage)
        self._router.bind(endpoint)

    def close(self) -> None:
        self._router.close()
        self._context.term()

    def send(self, message: EngineMessage) -> None:
        assert self._router.send(self._peer, message)

    def accept(self) -> None:
        self.send(Attached(PROTOCOL_VERSION, fingerprint(), 1, EngineFacts("m", 9, 9, 1, 9, (), 9)))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, receiving."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                for peer, message in self._router.drain():
                    self._peer = peer
                    self.received.append(message)
                await asyncio.sleep(0.002)

    async def next(self, kind: type[Any]) -> Any:
        """The next message of a kind; those before it are dropped."""
        await self.until(lambda: any(isinstance(message, kind) for message in self.received))
        while not isinstance(message := self.received.pop(0), kind):
            pass
        return message


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    core = Core(f"ipc://{tmp_path}/c")
    yield core
    core.close()


@pytest.fixture
async def client(core: Core) -> AsyncIterator[EngineClient]:
    """Attached to `core`."""
    client = EngineClient("test", 7)
    client.reattach(core.endpoint)
    assert (await core.next(Attach)).incarnation == 7
    core.accept()
    await core.until(client.attached.is_set)
    yield client
    await client.close()


def row(stream: TokenStream, index: int, token: int, finish: Finish = Finish.NONE) -> Outputs:
    ids = columns.pack(columns.UINT64, [stream.request_id])
    index_column = columns.pack(columns.UINT32, [index])
    return Outputs(1, 1, ids, index_column, columns.pack_ids([token]), bytes([finish]))


async def test_an_attach_that_is_lost_is_sent_again(core: Core) -> None:
    client = EngineClient()
    client.reattach(core.endpoint)
    stream = client.submit([1], LONG)
    await core.next(Attach)
    assert not client.attached.is_set()
    await core.next(Attach)
    core.accept()
    assert (await core.next(Submit)).request_id == stream.request_id
    assert client.attached.is_set()
    await client.close()


async def test_a_submit_that_is_lost_is_sent_again(
    core: Core, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.stream.PATIENCE_S", 0.0)
    monkeypatch.setattr("protocol.client.LOOK_AGAIN_S", 0.01)
    stream = client.submit([1], LONG)
    submits = [await core.next(Submit) for _ in range(3)]
    assert [submit.request_id for submit in submits] == [stream.request_id] * 3
    assert [submit.again for submit in submits] == [False, True, True]
    core.send(row(stream, 0, 5, Finish.STOP))
    assert (await anext(stream)).token_ids == [5]
    assert client.resubmitted >= 2


async def test_an_idle_client_has_no_timer(core: Core, client: EngineClient) -> None:
    await core.until(lambda: client._timer is None)
    stream = client.submit([1], LONG)
    assert client._timer is not None
    await core.next(Submit)
    core.send(row(stream, 0, 5, Finish.STOP))
    await core.until(lambda: client._timer is None)


async def test_keys_and_digests_go_along_and_a_detached_stream_is_left(
    core: Core, client: EngineClient
) -> None:
    stream = client.submit([1], LONG, key="k", digest="d", tenant="t")
    submit = await core.next(Submit)
    assert (submit.key, submit.digest, submit.tenant) == ("k", "d", "t")
    stream.close(Parting.DETACH)
    assert await core.next(Leave) == Leave((stream.request_id,))
    assert client.num_streams == 0
    other = client.submit([1], LONG, key="other")
    other.close()
    assert await core.next(Abort) == Abort((other.request_id,))


async def test_whether_a_worker_is_there_can_be_asked(core: Core, client: EngineClient) -> None:
    assert not client.suspended
    core.send(Suspended())
    await core.until(lambda: client.suspended)
    core.accept()
    await core.until(lambda: not client.suspended)
    assert client.attached.is_set()


async def test_closing_a_client_aborts_what_is_open(core: Core) -> None:
    client = EngineClient()
    client.reattach(core.endpoint)
    await core.next(Attach)
    core.accept()
    await core.until(client.attached.is_set)
    streams = [client.submit([1], LONG) for _ in range(3)]
    await client.close()
    assert await core.next(Abort) == Abort(tuple(stream.request_id for stream in streams))


async def test_tcp_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pass curve=CurveKeys"):
        await EngineClient.attach("tcp://127.0.0.1:1")
    with pytest.raises(Unavailable):
        await EngineClient.attach(f"ipc://{tmp_path}/nobody", timeout_s=0.01)
