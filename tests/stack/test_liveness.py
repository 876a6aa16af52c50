"""Stops and hangs under load: seen, and survived like a kill. Slowness: seen, and left alone."""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stack.conftest import Serve, Stack

LENGTH = 1500
"""Tokens: a fraction of a second with the stub."""


async def stream_text(
    stack: "Stack", prompt: str, length: int = LENGTH, on_chunk: "Callable[[int], None]" = lambda count: None
) -> str:
    """A greedy answer; `on_chunk` hears how many chunks have come."""
    async with stack.async_client() as client:
        stream = await client.completions.create(
            model="tiny", prompt=prompt, stream=True, temperature=0, max_tokens=length,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        text, count = "", 0
        async for chunk in stream:
            text += chunk.choices[0].text
            count += 1
            on_chunk(count)
        return text


def stop_at(stack: "Stack", kind: str, chunk: int) -> "Callable[[int], None]":
    def on_chunk(count: int) -> None:
        if count == chunk:
            os.kill(stack.pids[kind][0], signal.SIGSTOP)

    return on_chunk


@pytest.mark.parametrize("kind", ["engine_core", "worker"])
async def test_every_stream_survives_a_stop(serve: "Serve", kind: str) -> None:
    stack = serve()
    prompts = [f"Tern number {number}" for number in range(4)]
    expected = [await stream_text(stack, prompt) for prompt in prompts]
    hooks = [stop_at(stack, kind, 5), *[lambda count: None] * 3]
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

    def on_chunk(count: int) -> None:
        if count in (5, 10, 20):
            os.killpg(stack.program.pid, signal.SIGSTOP)
            while any(_state(pid) != "T" for group in before.values() for pid in group):
                pass  # it takes microseconds
            os.killpg(stack.program.pid, signal.SIGCONT)

    assert await stream_text(stack, "Patience", 3000, on_chunk) == expected
    assert stack.pids == before
    assert "killing it" not in stack.program.output


@pytest.mark.parametrize("kind", ["hang", "hang_gil"])
async def test_every_stream_survives_a_hang(serve: "Serve", tmp_path: Path, kind: str) -> None:
    expected = await stream_text(serve(), "Hang on")
    stack = serve(TERN_FAULTS=f"{kind}:step=20,times=1", TERN_FAULTS_DIR=str(tmp_path))
    assert await stream_text(stack, "Hang on") == expected
    stack.program.wait_for(r"worker \(pid \d+\) made no progress for \d+\.\d s; killing it")
    assert "worker has been at one thing for" in stack.program.output


async def test_a_slow_step_is_left_alone(serve: "Serve", tmp_path: Path) -> None:
    expected = await stream_text(serve(), "Slowly")
    stack = serve(TERN_FAULTS="slow:step=20,factor=1.5", TERN_FAULTS_DIR=str(tmp_path))
    before = stack.pids
    assert await stream_text(stack, "Slowly") == expected
    assert any("slow" in name for name in os.listdir(tmp_path))  # it has happened
    assert stack.pids == before
    assert "killing it" not in stack.program.output


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
