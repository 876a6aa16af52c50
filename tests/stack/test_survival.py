"""kill -9 of each process in the middle of a stream: the text is the one of an undisturbed run."""

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx2
import pytest

from protocol.client import EngineClient
from protocol.sampling import SamplingParams
from tests.stack.listening import listening
from tests.stack.streams import nothing, once, stream_text

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

LENGTH = 1500
"""Tokens: a fraction of a second with the stub, far longer than a kill takes to arrive."""


@pytest.mark.parametrize("kind", ["engine_core", "worker"])
async def test_every_stream_goes_on(serve: "Serve", kind: str) -> None:
    stack = serve()
    prompts = [f"Tern number {number}" for number in range(8)]
    expected = [await stream_text(stack, prompt, LENGTH) for prompt in prompts]
    hooks = [once(lambda: stack.kill(kind)), *[nothing] * 7]
    texts = await asyncio.gather(*(
        stream_text(stack, prompt, LENGTH, hook) for prompt, hook in zip(prompts, hooks, strict=True)
    ))  # fmt: skip
    assert texts == expected
    stack.program.wait_for("was killed by SIGKILL; starting it again now")
    assert len(set(texts)) == 8


async def test_what_is_killed_again_and_again_is_survived_again_and_again(serve: "Serve") -> None:
    stack = serve("--max-restarts", "20")
    expected = await stream_text(stack, "Once", LENGTH)
    kinds = ["engine_core", "worker", "engine_core", "worker"]

    def on_text(length: int) -> None:
        if kinds and length > (5 - len(kinds)) * len(expected) // 8:
            with suppress(ProcessLookupError):  # not yet replaced since the last time
                stack.kill(kinds[-1])
                kinds.pop()

    assert await stream_text(stack, "Once", LENGTH, on_text) == expected
    assert kinds == []


@pytest.mark.parametrize("kind", ["engine_core", "worker"])
async def test_the_same_with_a_real_model(serve: "Serve", kind: str) -> None:
    stack = serve(worker="torch")
    expected = await stream_text(stack, "Arctic", 200)
    assert await stream_text(stack, "Arctic", 200, once(lambda: stack.kill(kind))) == expected
    stack.program.wait_for("is ready again")
    assert ("are those that the last worker left" in stack.program.output) == (kind == "worker")


async def test_the_weights_stay_when_the_engine_core_dies(serve: "Serve") -> None:
    stack = serve()
    before = stack.pids
    stack.kill("engine_core")
    stack.program.wait_for("engine core is ready again")
    stack.wait_ready()
    after = stack.pids
    assert before["engine_core"] != after["engine_core"]
    assert (before["worker"], before["frontend"]) == (after["worker"], after["frontend"])


async def test_a_stranger_survives_too(serve: "Serve") -> None:
    stack = serve()
    sampling = SamplingParams(max_tokens=LENGTH, temperature=0, ignore_eos=True)
    client = await EngineClient.attach(stack.endpoint_file)
    expected = [token async for batch in client.submit([9], sampling) for token in batch.token_ids]
    stream = client.submit([9], sampling)
    await anext(stream)
    stack.kill("engine_core")
    async for _ in stream:
        pass
    assert stream.token_ids == expected
    assert client.resubmitted == 1
    await client.close()


def test_a_dead_frontend_is_replaced_and_its_requests_end(serve: "Serve") -> None:
    stack = serve()
    body = {"model": "tiny", "prompt": "x", "max_tokens": 15000, "stream": True, "ignore_eos": True}
    with httpx2.Client(base_url=stack.base_url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            stack.kill("frontend")
            with pytest.raises(httpx2.TransportError):
                list(lines)
        assert client.get("/v1/models").status_code == 200
    stack.program.wait_for("frontend is ready again")
    stack.wait_ready()
    asyncio.run(_wait_idle(stack.endpoint_file))


async def _wait_idle(endpoint_file: str) -> None:
    client = await EngineClient.attach(endpoint_file)
    while (await client.ping()).stats.num_running:
        pass  # the test's own deadline ends this
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


def test_two_ranks_live_and_die_together(serve: "Serve") -> None:
    stack = serve("--tensor-parallel-size", "2", worker="torch")
    assert {address for address, _ in listening(stack)} == {"127.0.0.1"}, "ranks meet where others reach them"
    before = set(stack.pids["worker"])
    stack.kill("worker", 1)
    stack.program.wait_for("worker is ready again")
    stack.wait_ready()
    assert before.isdisjoint(stack.pids["worker"])
    assert len(stack.pids["worker"]) == 2


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
