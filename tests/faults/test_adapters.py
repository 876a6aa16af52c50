"""Streams of adapters and of none, whose worker and engine core are killed: each goes on with its own."""

from typing import TYPE_CHECKING

import pytest

from tests.faults.load import SHARED, ask
from tests.faults.strikes import strike_when

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene
    from tests.faults.load import Load

MODELS = ("red", "tiny", "blue")


@pytest.mark.parametrize(("worker", "count", "length"), [("stub", 24, 400), ("torch", 9, 90)])
async def test_worker_and_engine_core_killed(
    scene: "NewScene", lora: tuple[str, ...], worker: str, count: int, length: int
) -> None:
    asks = [
        ask(f"{SHARED if n % 2 else ''} adapter {n // 3}", length, model=MODELS[n % 3], logprobs=1)
        for n in range(count)
    ]
    async with scene(*lora, worker=worker, restarts={"worker": 1, "engine_core": 1}) as one:

        async def fault(_: "Load") -> None:
            for kind, tokens in (("worker", 10 * count), ("engine_core", 20 * count)):
                await strike_when(
                    lambda stats, tokens=tokens: stats.generation_tokens >= tokens,  # type: ignore[misc]
                    lambda kind=kind: one.stack.kill(kind),  # type: ignore[misc]
                    one.stack,
                )

        answers = await one.load(asks, fault)
        texts = [answer.texts[0] for answer in answers]
        assert len(set(texts)) == len(texts), "two adapters gave one answer to the same prompt"
