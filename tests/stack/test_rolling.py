"""SIGHUP replaces the frontends, and no stream notices."""

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stack.conftest import Serve, Stack

LENGTH = 3000


async def stream_text(
    stack: "Stack", prompt: str, on_chunk: "Callable[[int], None]" = lambda count: None
) -> str:
    """A greedy answer; `on_chunk` hears how many chunks have come."""
    async with stack.async_client() as client:
        stream = await client.completions.create(
            model="tiny", prompt=prompt, stream=True, temperature=0, max_tokens=LENGTH,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        text, count = "", 0
        async for chunk in stream:
            text += chunk.choices[0].text
            count += 1
            on_chunk(count)
        return text


async def test_no_stream_is_lost_and_no_connection_refused(serve: "Serve") -> None:
    stack = serve("--frontends", "2")
    before = stack.pids
    prompts = [f"Tern number {number}" for number in range(6)]
    expected = [await stream_text(stack, prompt) for prompt in prompts]

    def hang_up(count: int) -> None:
        if count == 5:
            stack.program.signal(signal.SIGHUP)

    hooks = [hang_up, *[lambda count: None] * 5]
    texts = asyncio.gather(
        *(stream_text(stack, prompt, hook) for prompt, hook in zip(prompts, hooks, strict=True))
    )
    async with httpx2.AsyncClient(base_url=stack.base_url, timeout=60) as client:
        while not texts.done():
            fresh = {"Connection": "close"}  # each on a connection of its own
            assert (await client.get("/v1/models", headers=fresh)).status_code == 200
    assert await texts == expected
    for pid in before["frontend"]:
        stack.program.wait_for(rf"\(pid {pid}\) exited with code 0; its successor serves")
    stack.program.wait_until(lambda: len(stack.pids["frontend"]) == 2, "only successors are listed")
    after = stack.pids
    assert set(before["frontend"]).isdisjoint(after["frontend"])
    assert (before["engine_core"], before["worker"]) == (after["engine_core"], after["worker"])
    assert await stream_text(stack, prompts[0]) == expected[0]


async def test_a_signal_during_it_drains_everyone(serve: "Serve") -> None:
    stack = serve("--shutdown-timeout", "60")
    expected = await stream_text(stack, "Both")

    def on_chunk(count: int) -> None:
        if count == 5:
            stack.program.signal(signal.SIGHUP)
            stack.program.wait_for("frontend is replaced")
            stack.program.signal(signal.SIGTERM)

    assert await stream_text(stack, "Both", on_chunk) == expected
    assert stack.gone() == 0
