"""The frontend as a real process, with a test in the supervisor's place."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from frontend.process import Beating
from protocol.config import FrontendConfig
from protocol.control import (
    Drain,
    EngineAt,
    Failed,
    Phase,
    Quit,
    Ready,
    Retire,
    Start,
    SupervisorChannel,
    channel_pair,
)
from protocol.frontend_options import FrontendOptions
from protocol.options import ModelOptions
from protocol.progress import Board, Progress, Reading
from tests.frontend.conftest import MakeEngine, events, text_of
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

Ids = Callable[[str], list[int]]
ROOT = Path(__file__).parents[2]
REQUEST = {"messages": [{"role": "user", "content": "x"}], "stream": True}


class Child:
    """A frontend process, its control channel and its URL."""

    def __init__(self, process: asyncio.subprocess.Process, channel: SupervisorChannel, url: str) -> None:
        self.process = process
        self.channel = channel
        self.http = httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S)

    async def receive(self) -> Any:
        return await asyncio.wait_for(asyncio.to_thread(self.channel.receive, wait=True), DEADLINE_S)

    async def ready(self) -> Ready:
        while isinstance(message := await self.receive(), Phase):
            pass
        assert isinstance(message, Ready), message
        return message

    async def attach(self, engine: FakeEngine) -> None:
        self.channel.send(EngineAt(1, engine.endpoint, ""))
        await engine.until(lambda: engine.num_attached)
        async with asyncio.timeout(DEADLINE_S):
            while (await self.http.get("/health/ready")).status_code != 200:
                pass

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), DEADLINE_S)

    async def close(self) -> None:
        await self.http.aclose()
        self.channel.close()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


Spawn = Callable[..., Any]


@pytest.fixture
async def spawn(model_folder: Path) -> AsyncIterator[Spawn]:
    children: list[Child] = []

    async def start(
        model: Path = model_folder,
        metrics_dir: str = "",
        index: int = 0,
        board: Board | None = None,
        listening: socket.socket | None = None,
    ) -> Child:
        channel, theirs = channel_pair()
        ours = socket.create_server(("127.0.0.1", 0)) if listening is None else listening.dup()
        with ours as listener, theirs:
            arguments = ["-m", "frontend", "--control-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            descriptors = [theirs.fileno(), listener.fileno(), *([board.fd] if board is not None else [])]
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, cwd=ROOT, pass_fds=descriptors
            )
            config = FrontendConfig(
                incarnation=index + 1,
                index=index,
                listen_fd=listener.fileno(),
                model=ModelOptions(model=str(model), served_model_name=("tiny",)),
                frontend=FrontendOptions(),
                metrics_dir=metrics_dir,
                progress_fd=board.fd if board is not None else -1,
                progress_row=1,
            )
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        channel.send(Start(config))
        children.append(Child(process, channel, url))
        return children[-1]

    yield start
    for child in children:
        await child.close()


async def test_from_start_to_drain(
    spawn: Spawn, engine: FakeEngine, make_engine: MakeEngine, ids: Ids
) -> None:
    child = await spawn()
    assert (await child.ready()).facts["models"] == "tiny"
    assert (await child.http.get("/health/live")).status_code == 200
    assert (await child.http.get("/health/ready")).status_code == 503
    assert (await child.http.post("/v1/chat/completions", json=REQUEST)).status_code == 503

    await child.attach(engine)
    engine.answer, engine.pause_at = ids("From pole to pole"), 1
    async with child.http.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
        engine.close()  # killed, in the middle of the stream
        successor = make_engine()
        successor.answer = ids("From pole to pole")
        successor.pause_at = 1
        await child.attach(successor)
        await successor.until(lambda: successor.submits)
        child.channel.send(Drain(DEADLINE_S))
        async with httpx2.AsyncClient(base_url=child.http.base_url, timeout=DEADLINE_S) as other:
            while (refused := await other.get("/health/ready")).status_code != 503:
                pass
            assert refused.headers["retry-after"]
        successor.resume()
        assert text_of(await events(response)) == "From pole to pole"
    assert await child.exit_code() == 0


async def test_draining_is_over_in_time(spawn: Spawn, engine: FakeEngine, ids: Ids) -> None:
    child = await spawn()
    await child.ready()
    await child.attach(engine)
    engine.answer, engine.pause_at = ids("From pole to pole"), 1
    lines: list[str] = []

    async def read() -> None:
        async with child.http.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
            child.channel.send(Drain(0.05))
            async for line in response.aiter_lines():
                lines.append(line)

    with pytest.raises(httpx2.RemoteProtocolError):
        await read()
    last = [line for line in lines if line][-1]
    assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert await child.exit_code() == 0
    await engine.until(lambda: engine.aborted)


async def test_retiring_finishes_what_is_open_and_takes_nothing_new(
    spawn: Spawn, engine: FakeEngine, make_engine: MakeEngine, ids: Ids
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = await spawn(listening=listener)
        await child.ready()
        await child.attach(engine)
        engine.answer, engine.pause_at = ids("From pole to pole"), 1
        host, port = listener.getsockname()
        idle, idle_writer = await asyncio.open_connection(host, port)
        idle_writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        await idle.readuntil(b"}")
        begun, begun_writer = await asyncio.open_connection(host, port)
        begun_writer.write(b"GET /version HTTP/1.1\r\n")
        async with child.http.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
            child.channel.send(Retire())
            assert await asyncio.wait_for(idle.read(), DEADLINE_S) == b""  # idle: closed
            begun_writer.write(b"host: x\r\n\r\n")
            assert (await asyncio.wait_for(begun.read(), DEADLINE_S)).endswith(b"}")  # then closed
            with socket.create_connection((host, port)) as late:  # its successor's: the socket is still there
                late.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
                successor = await spawn(listening=listener, index=1)
                await successor.ready()
                late.settimeout(DEADLINE_S)
                assert await asyncio.to_thread(late.recv, 100)
            engine.resume()
            assert text_of(await events(response)) == "From pole to pole"
        assert await child.exit_code() == 0
        for writer in (idle_writer, begun_writer):
            writer.close()


@pytest.mark.parametrize("others", [0, 1])
async def test_whose_body_has_not_come_when_it_drains_is_told_to_come_back(
    spawn: Spawn, engine: FakeEngine, ids: Ids, others: int
) -> None:
    child = await spawn()
    await child.ready()
    await child.attach(engine)
    engine.answer, engine.pause_at = ids("From pole to pole"), 1
    host, port = str(child.http.base_url).removeprefix("http://").strip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with AsyncExitStack() as streams:
        for _ in range(others):
            stream = child.http.stream("POST", "/v1/chat/completions", json=REQUEST)
            await streams.enter_async_context(stream)
        writer.write(b'POST /v1/completions HTTP/1.1\r\ncontent-length: 15\r\n\r\n{"prompt"')
        assert (await child.http.get("/health/ready")).status_code == 200
        child.channel.send(Drain(DEADLINE_S))
        while others and (await child.http.get("/health/ready")).status_code != 503:
            pass
        writer.write(b': "x"}')
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), DEADLINE_S)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
        engine.resume()
    assert await child.exit_code() == 0
    writer.close()


@pytest.mark.parametrize("order", [Drain(0.05), Quit()], ids=["drain", "quit"])
async def test_who_retires_can_still_be_stopped(
    spawn: Spawn, engine: FakeEngine, ids: Ids, order: Drain | Quit
) -> None:
    child = await spawn()
    await child.ready()
    await child.attach(engine)
    engine.answer, engine.pause_at = ids("From pole to pole"), 1
    async with child.http.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
        child.channel.send(Retire())
        child.channel.send(order)
        with pytest.raises(httpx2.TransportError):
            await response.aread()
    assert await child.exit_code() == 0


async def test_its_progress_is_seen(spawn: Spawn) -> None:
    board = Board(2)
    child = await spawn(board=board)
    await child.ready()
    async with asyncio.timeout(DEADLINE_S):
        while not 0 < board.read(1).budget_s < 10:  # while loading it is more
            await child.http.get("/health/live")
        beats = board.read(1).beats
        while board.read(1).beats < beats + 2:
            await child.http.get("/health/live")
    assert board.read(0).beats == 0
    board.close()


async def test_each_request_is_a_part_of_the_work_that_is_done() -> None:
    board, answered = Board(1), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answered.append(scope["path"])

    progress = Progress(os.dup(board.fd), 0)
    progress.busy(5.0)
    before = board.read(0)
    beating = Beating(app, progress)
    for path in ("/a", "/b"):
        await beating({"type": "http", "path": path}, Mock(), Mock())
    assert answered == ["/a", "/b"]
    assert board.read(0) == Reading(before.beats + 2, before.budget_s)
    board.close()


async def test_quit_and_the_supervisors_death_end_it_at_once(spawn: Spawn) -> None:
    told, orphan = await spawn(), await spawn()
    await told.ready()
    await orphan.ready()
    told.channel.send(Quit())
    orphan.channel.close()
    assert await told.exit_code() == 0
    assert await orphan.exit_code() == 0


async def test_a_start_that_fails_says_why(spawn: Spawn, tmp_path: Path) -> None:
    child = await spawn(model=tmp_path)
    assert isinstance(await child.receive(), Phase)
    failed = await child.receive()
    assert isinstance(failed, Failed)
    assert "tokenizer.json" in failed.message
    assert failed.hint
    assert await child.exit_code() == failed.exit_code == 78


async def test_several_frontends_share_their_metrics(
    spawn: Spawn, engine: FakeEngine, make_engine: MakeEngine, ids: Ids, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    engines = [engine, make_engine()]
    children = [await spawn(metrics_dir=str(folder), index=index) for index in range(2)]
    for child, one in zip(children, engines, strict=True):
        await child.ready()
        await child.attach(one)
        one.answer = ids("x")
        assert (await child.http.post("/v1/completions", json={"prompt": "x"})).status_code == 200
    for child in children:
        assert (
            'tern_request_success_total{finished_reason="length"} 2.0'
            in (await child.http.get("/metrics")).text
        )


async def test_it_starts_light() -> None:
    code = "import frontend.process, sys; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    loaded = {name.split(".")[0] for name in (await process.communicate())[0].decode().split()}
    assert not loaded & {"torch", "transformers", "numpy", "pydantic"}
