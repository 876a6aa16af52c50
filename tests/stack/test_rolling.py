"""SIGHUP replaces the frontends, and no stream notices."""

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx2

from tests.stack.streams import nothing, once, stream_text

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

LENGTH = 3000


async def test_no_stream_is_lost_and_no_connection_refused(serve: "Serve") -> None:
    stack = serve("--frontends", "2")
    before = stack.pids
    prompts = [f"Tern number {number}" for number in range(2)]
    expected = [await stream_text(stack, prompt, LENGTH) for prompt in prompts]
    hooks = [once(lambda: stack.program.signal(signal.SIGHUP)), nothing]
    texts = asyncio.gather(
        *(stream_text(stack, prompt, LENGTH, hook) for prompt, hook in zip(prompts, hooks, strict=True))
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
    assert await stream_text(stack, prompts[0], LENGTH) == expected[0]


async def test_a_signal_during_it_drains_everyone(serve: "Serve") -> None:
    stack = serve("--shutdown-timeout", "60")
    expected = await stream_text(stack, "Both", LENGTH)

    def strike() -> None:
        stack.program.signal(signal.SIGHUP)
        stack.program.wait_for("frontend is replaced")
        stack.program.signal(signal.SIGTERM)

    assert await stream_text(stack, "Both", LENGTH, once(strike)) == expected
    assert stack.gone() == 0
