"""Stops and hangs under load: seen, and survived like a kill. Slowness: seen, and left alone."""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.stack.streams import nothing, once, stream_text

if TYPE_CHECKING:
    from tests.stack.conftest import Serve, Stack
    from tests.stack.streams import OnText

LENGTH = 1500
"""Tokens: a fraction of a second with the stub."""


def stop(stack: "Stack", kind: str) -> "OnText":
    """SIGSTOP in the middle of a stream."""
    return once(lambda: os.kill(stack.pids[kind][0], signal.SIGSTOP))


@pytest.mark.parametrize("kind", ["engine_core", "worker"])
async def test_every_stream_survives_a_stop(serve: "Serve", kind: str) -> None:
    stack = serve()
    prompts = [f"Tern number {number}" for number in range(4)]
    expected = [await stream_text(stack, prompt, LENGTH) for prompt in prompts]
    hooks = [stop(stack, kind), *[nothing] * 3]
    texts = await asyncio.gather(*(
        stream_text(stack, prompt, LENGTH, hook) for prompt, hook in zip(prompts, hooks, strict=True)
    ))  # fmt: skip
    assert texts == expected
    stack.program.wait_for("is stopped and was not continued; killing it")


def test_a_stopped_frontend_is_replaced(serve: "Serve") -> None:
    stack = serve()
    os.kill(stack.pids["frontend"][0], signal.SIGSTOP)
    stack.program.wait_for("frontend is ready again")
    stack.wait_ready()
    with httpx2.Client(base_url=stack.base_url, timeout=60) as client:
        assert client.get("/v1/models").status_code == 200


async def test_a_whole_tree_that_is_stopped_and_continued_restarts_nothing(serve: "Serve") -> None:
    stack = serve()
    before = stack.pids
    expected = await stream_text(stack, "Patience", 3000)

    marks = [50, 500, 1000]

    def on_text(length: int) -> None:
        if marks and length >= marks[0]:
            marks.pop(0)
            os.killpg(stack.program.pid, signal.SIGSTOP)
            while any(_state(pid) != "T" for group in before.values() for pid in group):
                pass  # it takes microseconds
            os.killpg(stack.program.pid, signal.SIGCONT)

    assert await stream_text(stack, "Patience", 3000, on_text) == expected
    assert not marks
    assert stack.pids == before
    assert "killing it" not in stack.program.output


@pytest.mark.parametrize("kind", ["hang", "hang_gil"])
async def test_every_stream_survives_a_hang(serve: "Serve", tmp_path: Path, kind: str) -> None:
    expected = await stream_text(serve(), "Hang on", LENGTH)
    stack = serve(TERN_FAULTS=f"{kind}:step=20,times=1", TERN_FAULTS_DIR=str(tmp_path))
    assert await stream_text(stack, "Hang on", LENGTH) == expected
    stack.program.wait_for(r"worker \(pid \d+\) made no progress for \d+\.\d s; killing it")
    assert "worker has been at one thing for" in stack.program.output


async def test_a_slow_step_is_left_alone(serve: "Serve", tmp_path: Path) -> None:
    expected = await stream_text(serve(), "Slowly", LENGTH)
    stack = serve(TERN_FAULTS="slow:step=20,factor=1.5", TERN_FAULTS_DIR=str(tmp_path))
    before = stack.pids
    assert await stream_text(stack, "Slowly", LENGTH) == expected
    assert any("slow" in name for name in os.listdir(tmp_path))  # it has happened
    assert stack.pids == before
    assert "killing it" not in stack.program.output


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
