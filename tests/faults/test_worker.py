"""Workers, alone or of two ranks, that are killed, stopped or hang: every stream goes on."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.at_rest import Core
from tests.faults.load import SHARED, Load, ask, many, no_fault
from tests.faults.strikes import KILL, STOP, at, strike_when
from tests.stack.listening import listening

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene

LENGTH = 300
ONE = {"worker": 1}
TWO_RANKS = ("--tensor-parallel-size", "2")


@pytest.mark.parametrize(("worker", "count", "length"), [("stub", 64, LENGTH), ("bundled", 12, 90)])
async def test_killed(scene: "NewScene", worker: str, count: int, length: int) -> None:
    """Scenario 1: kill -9 of the worker while 64 streams decode."""
    async with scene(worker=worker, restarts=ONE) as one:
        await one.load(many(count, length), at(20 * count, one, KILL, "worker"))


async def test_killed_while_a_stop_string_is_half_emitted(scene: "NewScene") -> None:
    """Scenario 1: the frontend holds back what may be the beginning of a stop string."""
    async with scene(restarts=ONE) as one:
        half, whole = await one.references([ask("a long goodbye", length) for length in (500, 1000)])
        first = len(half.texts[0]) - 40
        stop = whole.texts[0][first : first + 200]
        stopped = ask("a long goodbye", 1000, stop=[stop])

        async def fault(load: Load) -> None:
            await load.until(lambda: len(load.texts.get(0, "")) > first - 20)
            one.stack.kill("worker")

        (answer,) = await one.load([stopped], fault, limit=500)
        assert answer.texts[0] == whole.texts[0][: whole.texts[0].index(stop)]
        assert answer.finish_reasons == {0: "stop"}


@pytest.mark.parametrize("worker", ["stub", "bundled"])
async def test_killed_in_the_middle_of_a_prompt(scene: "NewScene", worker: str) -> None:
    """Scenario 2: kill -9 of the worker while a long prompt is computed in chunks."""
    flags = ["--max-num-batched-tokens", "16", "--max-num-seqs", "16"]
    async with scene(*flags, worker=worker, restarts=ONE) as one:
        prompt = SHARED * (40 if worker == "stub" else 5)
        asks = [ask(f"{prompt} {n}", 20, logprobs=1) for n in range(2)]

        async def fault(_: Load) -> None:
            one.stack.hold.after(20, "steps")
            await strike_when(
                lambda stats: stats.prompt_tokens > 200, lambda: one.stack.kill("worker"), one.stack
            )

        await one.load(asks, fault)


@pytest.mark.parametrize(("worker", "count", "length"), [("stub", 16, LENGTH), ("torch", 4, 60)])
async def test_rank_1_killed(scene: "NewScene", worker: str, count: int, length: int) -> None:
    """Scenario 3: kill -9 of rank 1 of 2: the group is replaced as a unit (Scene checks that)."""
    told = (0, 1)  # by rank 0, if it finds its collective broken before it is killed, too
    async with scene(*TWO_RANKS, worker=worker, restarts=ONE, tracebacks=told) as one:
        addresses = {address for address, _ in listening(one.stack)}
        assert addresses == {"127.0.0.1"}, "ranks meet where others reach them"
        await one.load(many(count, length), at(20 * count, one, KILL, "worker", 1))
        async with Core.of(one.stack) as core:
            assert (await core.stats()).epochs == 2


async def test_rank_0_killed(scene: "NewScene") -> None:
    """Scenario 4: kill -9 of rank 0 of 2, which speaks for the group."""
    async with scene(*TWO_RANKS, restarts=ONE) as one:
        await one.load(many(16, LENGTH), at(320, one, KILL, "worker", 0))
        async with Core.of(one.stack) as core:
            assert (await core.stats()).epochs == 2


@pytest.mark.parametrize(
    ("worker", "flags", "rank"), [("stub", (), 0), ("stub", TWO_RANKS, 1), ("bundled", (), 0)]
)
async def test_stopped(scene: "NewScene", worker: str, flags: tuple[str, ...], rank: int) -> None:
    """Scenario 5: SIGSTOP of a worker."""
    count, length = (32, LENGTH) if worker == "stub" else (12, 90)
    async with scene(*flags, worker=worker, restarts=ONE) as one:
        await one.load(many(count, length), at(20 * count, one, STOP, "worker", rank))
        await one.hears(r"worker( \d)? \(pid \d+\) is stopped and was not continued; killing it")


@pytest.mark.parametrize(
    ("kind", "worker", "step"), [("hang", "stub", 20), ("hang_gil", "stub", 20), ("hang_gil", "bundled", 1)]
)
async def test_hung(scene: "NewScene", tmp_path: Path, kind: str, worker: str, step: int) -> None:
    """Scenario 6: the worker's main thread sleeps for ever, also with the interpreter's lock held, and in the
    very first step."""
    faults = {"TERN_FAULTS": f"{kind}:step={step},times=1", "TERN_FAULTS_DIR": str(tmp_path)}
    count, length = (32, LENGTH) if worker == "stub" else (12, 90)
    async with scene(worker=worker, restarts=ONE, **faults) as one:
        await one.load(many(count, length), no_fault)
        await one.hears(r"worker \(pid \d+\) made no progress for \d+\.\d s; killing it")
        assert "worker has been at one thing for" in one.stack.program.output


async def test_slow(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 7: a step takes 1.5 times its budget, once. Nobody is killed."""
    faults = {"TERN_FAULTS": "slow:step=40,factor=1.5", "TERN_FAULTS_DIR": str(tmp_path)}
    async with scene(**faults) as one:
        await one.load(many(32, LENGTH), no_fault)
        assert any("slow" in name for name in os.listdir(tmp_path))  # it has happened
