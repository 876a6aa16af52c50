"""Frontends that die, stop or are replaced: their own connections drop, and nobody else's notice."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import KEY, Answer, Load, ask, many, no_fault
from tests.faults.strikes import KILL, STOP
from tests.stack.listening import socket_inodes

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene
    from tests.faults.oracles import Scene

LENGTH = 600
LONG = 15000
"""Tokens: seconds of the stub's time."""


def served_by(pid: int, load: Load, server_port: int) -> set[int]:
    """Places of the asks whose connections this process holds, as the kernel tells."""
    inodes = socket_inodes(pid)
    places = {port: place for place, port in load.ports.items()}
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ours, theirs = (int(fields[i].rpartition(":")[2], 16) for i in (1, 2))
        if ours == server_port and theirs in places and fields[9] in inodes:
            found.add(places[theirs])
    return found


async def strike_one(scene: "Scene", number: signal.Signals) -> None:
    """Hurt the frontend that has most of the clients; whoever is not among them must not notice."""
    asks = [ask(f"frontends {n}", 2000) for n in range(24)]  # some for each frontend
    theirs: set[int] = set()
    port = int(scene.stack.base_url.rpartition(":")[2])

    async def fault(load: Load) -> None:
        await load.begun()
        served = {pid: served_by(pid, load, port) for pid in scene.stack.pids["frontend"]}
        pid = max(served, key=lambda pid: len(served[pid]))
        theirs.update(served[pid])
        os.kill(pid, number)

    answers = await scene.unchecked(asks, fault)
    cut = {place for place, answer in enumerate(answers) if answer.error == "cut"}
    assert cut
    assert cut <= theirs < set(range(len(asks)))
    others = [i for i in range(len(asks)) if i not in cut]
    scene.compare([answers[i] for i in others], await scene.references([asks[i] for i in others]))


async def test_one_of_three_killed(scene: "NewScene") -> None:
    """Scenario 19: kill -9 of one of three frontends: its connections drop, and its blocks come back."""
    async with scene("--frontends", "3", restarts={"frontend": 1}) as one:
        await strike_one(one, KILL)


async def test_one_of_two_stopped(scene: "NewScene") -> None:
    """Scenario 20: SIGSTOP of a frontend: killed and replaced, and its blocks come back."""
    async with scene("--frontends", "2", restarts={"frontend": 1}) as one:
        await strike_one(one, STOP)
        await one.hears(r"frontend \d \(pid \d+\) is stopped and was not continued; killing it")


async def test_killed_while_it_answers_with_headers(scene: "NewScene") -> None:
    """Scenario 21: kill -9 of the frontend as the first bytes of its answers arrive: a reset, and no leak."""
    body = json.dumps(ask("headers", LONG).document).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: tern\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    async with scene(restarts={"frontend": 1}) as one:
        port = int(one.stack.base_url.rpartition(":")[2])
        begun = asyncio.Event()

        async def client() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + body)
            received = b""
            try:
                while data := await reader.read(1 if not begun.is_set() else 1 << 16):
                    received += data
                    begun.set()
                    if received.endswith(b"[DONE]\n\n"):
                        break
            except ConnectionResetError:
                pass
            writer.close()
            return received

        async def strike() -> None:
            await begun.wait()
            one.stack.kill("frontend")

        _, received = await asyncio.gather(strike(), client())
        assert received.startswith(b"H")
        assert not received.endswith(b"[DONE]\n\n")
        assert (await one.at_rest()).generation_tokens < LONG, "nobody read it, and yet it went on"


@pytest.mark.parametrize(("worker", "count", "length"), [("stub", 32, LENGTH), ("bundled", 12, 90)])
async def test_replaced(scene: "NewScene", worker: str, count: int, length: int) -> None:
    """Scenario 26: SIGHUP replaces the frontends, and no stream is lost."""
    async with scene("--frontends", "2", worker=worker, rolled=True) as one:
        before = one.stack.pids["frontend"]

        async def fault(load: Load) -> None:
            await load.begun()
            one.stack.program.signal(signal.SIGHUP)

        await one.load(many(count, length), fault)
        for pid in before:
            await one.hears(rf"\(pid {pid}\) exited with code 0; its successor serves")
        answers: list[Answer] = await one.load(many(12, 40), no_fault)
        assert len(answers) == 12


async def test_killed_again_and_again(scene: "NewScene") -> None:
    """Scenario 19: the only frontend, three times: the port never refuses, and nothing leaks."""
    async with scene(restarts={"frontend": 3}) as one:
        for n in range(3):

            async def fault(load: Load) -> None:
                await load.begun()
                one.stack.kill("frontend")

            answers = await one.unchecked([ask(f"again {n} {i}", LONG) for i in range(8)], fault)
            assert [answer.error for answer in answers] == ["cut"] * 8
            await asyncio.to_thread(one.stack.wait_ready)
            await one.load(many(6, 30), no_fault)
        assert (await one.at_rest()).generation_tokens < 3 * 8 * LONG
