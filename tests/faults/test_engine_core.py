"""Engine cores that die or stop: the weights stay, and every stream goes on as if nothing were."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from protocol.client import EngineClient
from protocol.messages import EngineStats
from protocol.sampling import SamplingParams
from tests.faults.at_rest import Core
from tests.faults.load import Load, ask, many
from tests.faults.strikes import KILL, STOP, at, strike_when

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene

ONE = {"engine_core": 1}
KIND = "engine_core"


@pytest.mark.parametrize(
    ("worker", "flags", "count", "length"),
    [("stub", (), 64, 300), ("stub", ("--tensor-parallel-size", "2"), 24, 400), ("bundled", (), 12, 90)],
)
async def test_killed(
    scene: "NewScene", worker: str, flags: tuple[str, ...], count: int, length: int
) -> None:
    """Scenario 14: kill -9 of the engine core while 64 streams decode. Scene checks the workers' pids."""
    async with scene(*flags, worker=worker, restarts=ONE) as one:
        await one.load(many(count, length), at(20 * count, one, KILL, KIND))
        async with Core.of(one.stack) as core:
            stats = await core.stats()
            assert stats.epochs == 1
            assert stats.resubmissions > 0


async def test_killed_while_requests_wait(scene: "NewScene") -> None:
    """Scenario 15: kill -9 of the engine core while 100 requests wait: they are served as they came."""
    async with scene("--max-num-seqs", "1", restarts=ONE) as one:
        client = await EngineClient.attach(one.stack.endpoint_file)
        ended: list[int] = []

        async def read(number: int) -> None:
            sampling = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
            stream = client.submit([number, 5, 6], sampling)
            async for _ in stream:
                pass
            assert len(stream.token_ids) == 40
            ended.append(number)

        one.stack.hold.after(20 * 40)
        half = strike_when(lambda stats: 50 < stats.num_waiting < 90, lambda: one.stack.kill(KIND), one.stack)

        async def strike() -> None:
            await half
            one.stack.hold.release()

        await asyncio.gather(strike(), *(read(number) for number in range(101)))
        assert ended == list(range(101))
        await client.close()


@pytest.mark.parametrize(("worker", "count", "length"), [("stub", 32, 300), ("bundled", 12, 90)])
async def test_stopped(scene: "NewScene", worker: str, count: int, length: int) -> None:
    """Scenario 16: SIGSTOP of the engine core: killed before its successor starts, so it never speaks."""
    async with scene(worker=worker, restarts=ONE) as one:
        old = one.stack.pids[KIND][0]
        await one.load(many(count, length), at(20 * count, one, STOP, KIND))
        await one.hears(rf"engine core \(pid {old}\) is stopped and was not continued; killing it")
        async with Core.of(one.stack) as core:
            assert (await core.stats()).stale_messages == 0


@pytest.mark.parametrize("worker", ["stub", "bundled"])
async def test_killed_five_times(scene: "NewScene", worker: str) -> None:
    """Scenario 17: kill -9 of five engine cores, each as soon as all streams go on at its successor."""

    def all_go_on(stats: EngineStats) -> bool:
        return stats.num_running + stats.num_waiting == 12 and stats.generation_tokens > 24

    async with scene(worker=worker, restarts={KIND: 5}) as one:

        async def fault(_: Load) -> None:
            for _death in range(5):
                one.stack.hold.after(12 * 15)
                await strike_when(all_go_on, lambda: one.stack.kill(KIND), one.stack)

        await one.load([ask(f"five {n}", 300, seed=n, temperature=4) for n in range(12)], fault)


@pytest.mark.parametrize("first", [1, 5, 20])
async def test_killed_while_requests_arrive(scene: "NewScene", first: int) -> None:
    """Scenario 18: kill -9 of the engine core while a frontend submits: no request is lost or doubled."""
    async with scene(restarts=ONE) as one:

        async def fault(_: Load) -> None:
            await strike_when(
                lambda stats: stats.num_running + stats.num_waiting >= first,
                lambda: one.stack.kill(KIND),
                one.stack,
            )

        await one.load(many(48, 300), fault, together=False)
