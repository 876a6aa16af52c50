"""The end of a server, wanted or not, and starts that come to nothing: nothing is left."""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load, ask, many, no_fault
from tests.stack.listening import all_listening, listening_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Launch, Program
    from tests.faults.conftest import NewScene
    from tests.faults.load import Answer, Fault

LONG = 15000


def serve_flags(run_dir: Path, worker: str = "stub") -> list[str]:
    return ["--port", "0", "--run-dir", str(run_dir), "--worker", worker, "--threads", "1"]


async def test_a_worker_that_never_gets_ready(
    launch: "Launch", tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Scenario 13: kill -9 of each worker while it starts: six deaths, one cause, and an exit code."""
    run_dir = tmp_path / "run"
    program = launch("scripts.cli", "serve", str(tiny_checkpoint), *serve_flags(run_dir, "torch"))
    killed: set[int] = set()

    def over() -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in set(json.loads((run_dir / "pids.json").read_text()).get("worker", ())) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        return len(killed) == 6

    await asyncio.to_thread(program.wait_until, over, "six workers were killed")
    assert program.wait() == 1
    last = program.output.splitlines()[-1]
    assert re.search(r"error: worker \(pid \d+\) was killed by SIGKILL; gave up after 6 deaths", last), last
    assert program.output.count("error:") == 1
    assert program.output.count("starting it again") == 5
    assert "Traceback" not in program.output
    assert program.survivors() == []
    assert not run_dir.exists()


def cut_off(answers: "list[Answer]") -> bool:
    """Each without its end."""
    return all(answer.error and not answer.complete for answer in answers)


async def test_the_supervisor_is_killed(scene: "NewScene", launch: "Launch", tiny_checkpoint: Path) -> None:
    """Scenario 22: kill -9 of the supervisor: all processes go, and its folder and port can be used again."""
    async with scene("--frontends", "2", stopped=True, abandoned=True) as one:

        async def fault(load: Load) -> None:
            await load.begun()
            one.stack.kill("supervisor")

        assert cut_off(await one.unchecked([ask(f"orphan {n}", LONG) for n in range(8)], fault))
        await asyncio.to_thread(one.stack.program.wait_until_gone)
    flags = [*serve_flags(one.stack.run_dir), "--port", one.stack.base_url.rpartition(":")[2]]
    program = launch("scripts.cli", "serve", str(tiny_checkpoint), *flags)
    await asyncio.to_thread(program.wait_for, "Ctrl-C stops everything")
    program.signal(signal.SIGTERM)
    assert await asyncio.to_thread(program.wait) == 0
    assert not list(one.stack.run_dir.iterdir())


@pytest.mark.parametrize(("worker", "moment"), [("torch", "worker: importing torch"), ("stub", "tokenizer")])
def test_the_supervisor_is_killed_while_it_starts(
    launch: "Launch", tiny_checkpoint: Path, tmp_path: Path, worker: str, moment: str
) -> None:
    """Scenario 23: kill -9 of the supervisor while the model is loaded."""
    program = launch("scripts.cli", "serve", str(tiny_checkpoint), *serve_flags(tmp_path / "run", worker))
    program.wait_for(moment)
    sockets = listening_of(program.pid)
    assert sockets
    program.signal(signal.SIGKILL)
    program.wait_until_gone()
    assert "Traceback" not in program.output
    assert not sockets.keys() & all_listening().keys()


@pytest.mark.parametrize("worker", ["stub", "bundled"])
async def test_asked_to_end(scene: "NewScene", worker: str) -> None:
    """Scenario 24: SIGTERM with 32 streams, which finish; new work is refused meanwhile."""
    count, length = (32, 600) if worker == "stub" else (12, 90)
    async with scene("--shutdown-timeout", "60", worker=worker, stopped=True) as one:

        async def fault(load: Load) -> None:
            await load.begun()
            one.stack.program.signal(signal.SIGTERM)

        asks = many(count, length)
        await one.load(asks, fault)
        assert await asyncio.to_thread(one.stack.program.wait) == 0


async def test_asked_to_end_when_idle(scene: "NewScene") -> None:
    """Scenario 24: SIGTERM of an idle server."""
    async with scene(stopped=True) as one:
        one.stack.program.signal(signal.SIGTERM)
        assert await asyncio.to_thread(one.stack.program.wait) == 0


async def test_asked_to_end_with_a_stream_that_takes_longer(scene: "NewScene") -> None:
    """Scenario 24: SIGTERM with streams longer than the window: each ends with an error event."""
    async with scene("--shutdown-timeout", "0.2", stopped=True) as one:
        asks = [ask(f"too long {n}", LONG) for n in range(4)]
        answers = await one.unchecked(asks, signalled(one.stack.program, signal.SIGTERM))
        assert [answer.error for answer in answers] == ["unavailable"] * 4
        assert await asyncio.to_thread(one.stack.program.wait) == 0


def signalled(program: "Program", number: signal.Signals) -> "Fault":
    """A signal to the supervisor, once chunks come."""

    async def fault(load: Load) -> None:
        await load.begun()
        program.signal(number)

    return fault


async def test_asked_to_end_twice(scene: "NewScene") -> None:
    """Scenario 25: the second SIGTERM waits for nobody."""
    async with scene("--shutdown-timeout", "1000", stopped=True) as one:

        async def fault(load: Load) -> None:
            await signalled(one.stack.program, signal.SIGTERM)(load)
            await one.hears("open streams have 1000 s")
            one.stack.program.signal(signal.SIGTERM)

        assert cut_off(await one.unchecked([ask(f"twice {n}", LONG) for n in range(4)], fault))
        assert await asyncio.to_thread(one.stack.program.wait) == 0


@pytest.mark.parametrize("busy", [False, True])
async def test_interrupted_at_a_terminal(scene: "NewScene", busy: bool) -> None:
    """Scenario 27: SIGINT to the whole process group, as Ctrl-C sends it: exit 130."""
    async with scene("--frontends", "2", "--shutdown-timeout", "0", stopped=True) as one:

        async def fault(load: Load) -> None:
            if busy:
                await load.begun()
            os.killpg(one.stack.program.pid, signal.SIGINT)

        answers = await one.unchecked([ask(f"interrupted {n}", LONG) for n in range(8 * busy)], fault)
        assert cut_off(answers)
        assert await asyncio.to_thread(one.stack.program.wait) == 130


def test_the_port_is_in_use(launch: "Launch", tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Scenario 34: the start ends before anything is loaded, with one line that names the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = [*serve_flags(tmp_path / "run", "torch"), "--port", str(port)]
        program = launch("scripts.cli", "serve", str(tiny_checkpoint), *flags)
        assert program.wait() == 78
    (line,) = program.output.splitlines()
    assert f"port {port} on 127.0.0.1 is in use" in line
    assert "--port" in line
    assert not (tmp_path / "run").exists()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def spoil_the_header(file: Path) -> None:
    with file.open("r+b") as content:
        content.write((1 << 60).to_bytes(8, "little"))


def flip_a_bit(file: Path) -> None:
    os.system(f"cd {file.parent} && sha256sum *.safetensors > SHA256SUMS")
    with file.open("r+b") as content:
        content.seek(-100, os.SEEK_END)
        (byte,) = content.read(1)
        content.seek(-100, os.SEEK_END)
        content.write(bytes((byte ^ 1,)))


@pytest.mark.parametrize("spoil", [truncate, spoil_the_header, flip_a_bit])
def test_a_checkpoint_is_broken(
    launch: "Launch", tiny_checkpoint: Path, tmp_path: Path, spoil: "Callable[[Path], None]"
) -> None:
    """Scenario 42: truncated, with a header that makes no sense, with a flipped bit and checksums."""
    folder, run_dir = tmp_path / "broken", tmp_path / "run"
    shutil.copytree(tiny_checkpoint, folder)
    spoil(folder / "model.safetensors")
    program = launch("scripts.cli", "serve", str(folder), *serve_flags(run_dir, "torch"))
    assert program.wait() == 78, program.output
    last = program.output.splitlines()[-1]
    assert last.startswith("tern: error: worker: ")
    assert "model.safetensors" in last
    assert "starting it again" not in program.output
    assert "Traceback" not in program.output
    assert program.survivors() == []
    assert not run_dir.exists()


async def test_the_disk_is_full(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 43: neither journal nor crash report can be written: one warning, and all else goes on."""
    journal, crash_dir = tmp_path / "journal", tmp_path / "reports"
    journal.symlink_to("/dev/full")
    flags = ["--journal", str(journal), "--crash-dir", str(crash_dir)]
    async with scene(*flags, restarts={"worker": 1}) as one:

        async def fault(load: Load) -> None:
            await load.begun()
            resource.prlimit(one.stack.pids["engine_core"][0], resource.RLIMIT_FSIZE, (0, 0))
            one.stack.kill("worker")

        await one.load(many(24, 300), fault)
        await one.hears("warning: the journal ends here: No space left on device")
    assert one.stack.program.output.count("the journal ends here") == 1
    assert all(report.stat().st_size == 0 for report in crash_dir.iterdir())


async def test_two_servers(scene: "NewScene") -> None:
    """Scenario 47: two servers of one user: what befalls one, the other does not notice."""
    async with scene(restarts={"worker": 1, "engine_core": 1}) as one, scene() as other:

        async def fault(load: Load) -> None:
            await load.begun()
            one.stack.kill("worker")
            await one.hears("worker is ready again")
            one.stack.kill("engine_core")

        asks = [ask(f"twins {n}", 3000) for n in range(8)]
        await asyncio.gather(one.load(asks, fault), other.load(asks, no_fault))
