"""Kills in the middle of what is asked: the answer is that of an undisturbed run. faults/ has all kinds."""

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx2
import pytest

from protocol.client import EngineClient
from protocol.sampling import SamplingParams
from tests.stack.streams import stream_text

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

LENGTH = 1500
"""Tokens"""


async def test_what_is_killed_again_and_again_is_survived_again_and_again(serve: "Serve") -> None:
    """Each kill after more text has come, and so that all is not there before."""
    stack = serve("--max-restarts", "20", held=True)
    expected = await stream_text(stack, "Once", LENGTH)
    kinds = ["engine_core", "worker", "engine_core", "worker"]
    lengths = [0]

    def on_text(length: int) -> None:
        if kinds and length > lengths[-1]:
            with suppress(ProcessLookupError):  # not yet replaced since the last time
                stack.kill(kinds[-1])
                kinds.pop()
                lengths.append(length)
                stack.hold.after(LENGTH // 8)
        if not kinds:
            stack.hold.release()

    stack.hold.after(LENGTH // 8)
    assert await stream_text(stack, "Once", LENGTH, on_text) == expected
    assert kinds == []


async def test_a_stranger_survives_too(serve: "Serve") -> None:
    stack = serve(held=True)
    sampling = SamplingParams(max_tokens=LENGTH, temperature=0, ignore_eos=True)
    client = await EngineClient.attach(stack.endpoint_file)
    expected = [token async for batch in client.submit([9], sampling) for token in batch.token_ids]
    stack.hold.after(LENGTH // 2)
    stream = client.submit([9], sampling)
    await anext(stream)
    stack.kill("engine_core")
    stack.hold.release()
    async for _ in stream:
        pass
    assert stream.token_ids == expected
    assert client.resubmitted == 1
    await client.close()


def test_a_crash_loop_ends_with_its_cause(serve: "Serve") -> None:
    stack = serve("--max-restarts", "1")
    stack.kill("worker")
    stack.program.wait_for("worker is ready again")
    stack.kill("worker")
    assert stack.gone() == 1
    last = stack.program.output.splitlines()[-1]
    assert re.search(r"worker \(pid \d+\) was killed by SIGKILL; gave up after 2 deaths within 60 s", last), (
        last
    )


@pytest.mark.parametrize("kind", ["engine_core", "worker"])
async def test_embeddings_come_all_the_same(serve: "Serve", kind: str) -> None:
    stack = serve()
    inputs = [[6 + n % 400, 6 + n // 400, *[9] * (100 * (n % 7))] for n in range(800)]
    async with stack.async_client() as client:

        async def embed() -> list[list[float]]:
            answer = await client.embeddings.create(model="tiny", input=inputs)
            return [one.embedding for one in answer.data]

        expected = await embed()
        again = asyncio.ensure_future(embed())
        async with httpx2.AsyncClient(base_url=stack.base_url, timeout=60) as http:
            while "tern_num_requests_running 0.0" in (await http.get("/metrics")).text:
                if again.done():  # it was over before anybody looked
                    again = asyncio.ensure_future(embed())
        stack.kill(kind)
        assert await again == expected
    stack.program.wait_for("was killed by SIGKILL; starting it again now")
    assert len({tuple(vector) for vector in expected}) == len(inputs)
