"""Streams of adapters and of none, whose worker and engine core are killed: each goes on with its own."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.at_rest import Core
from tests.faults.load import SHARED, ask

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene
    from tests.faults.load import Load

MODELS = ("red", "tiny", "blue")


@pytest.mark.parametrize(("worker", "count", "length"), [("stub", 24, 300), ("torch", 9, 120)])
async def test_worker_and_engine_core_killed(
    scene: "NewScene", lora: tuple[str, ...], worker: str, count: int, length: int
) -> None:
    asks = [
        ask(f"{SHARED if n % 2 else ''} adapter {n // 3}", length, model=MODELS[n % 3], logprobs=1)
        for n in range(count)
    ]
    async with scene(*lora, worker=worker, restarts={"worker": 1, "engine_core": 1}) as one:

        async def watch() -> None:
            """Over one connection: between two, all may end."""
            async with Core.of(one.stack) as core:
                for kind, tokens in (("worker", 5 * count), ("engine_core", 10 * count)):
                    one.stack.hold.after(10 * count)
                    stats = await core.until(lambda stats, least=tokens: stats.generation_tokens >= least)  # type: ignore[misc]
                    assert stats.num_running + stats.num_waiting, "all has ended before the fault"
                    one.stack.kill(kind)

        async def fault(_: "Load") -> None:
            await asyncio.to_thread(asyncio.run, watch())

        answers = await one.load(asks, fault)
        texts = [answer.texts[0] for answer in answers]
        assert len(set(texts)) == len(texts), "two adapters gave one answer to the same prompt"
