"""Requests whose work goes wrong in the worker: they end alone, and their neighbours as without them."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import MARK, ask, many, no_fault

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene

LENGTH = 200
COUNT = 31
MARKED = ask([9, 8, 7, *range(20, 60), MARK, 11], LENGTH)
"""Comes last, but runs with all others."""


def fault(text: str, folder: Path) -> dict[str, str]:
    return {"TERN_FAULTS": text, "TERN_FAULTS_DIR": str(folder)}


async def test_its_step_raises(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 8: the worker raises in each step with one request: with all others, and again alone."""
    async with scene(tracebacks=[2], **fault(f"raise:token={MARK}", tmp_path)) as one:
        await one.load([*many(COUNT, LENGTH), MARKED], no_fault, failing={COUNT: "internal_error"})


@pytest.mark.parametrize("worker", ["stub", "bundled"])
async def test_the_device_is_lost(scene: "NewScene", tmp_path: Path, worker: str) -> None:
    """Scenario 9: an error that poisons the device's context, once: exit 70, and everyone goes on."""
    faults = fault(f"poison:token={MARK},times=1", tmp_path)
    count, length = (COUNT, LENGTH) if worker == "stub" else (8, 40)
    async with scene(worker=worker, restarts={"worker": 1}, tracebacks=[1], **faults) as one:
        await one.load([*many(count, length), MARKED], no_fault)
        await one.hears("exited with code 70")


async def test_out_of_memory(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 10: out of memory in two steps, then fine: fewer at once, and no restart."""
    async with scene(**fault("oom:steps=800-801", tmp_path)) as one:  # by then, all of them run
        await one.load([ask(f"petrel {n}", 1500) for n in range(8)], no_fault)
        assert (await one.at_rest()).preemptions > 0


async def test_it_kills_the_worker_each_time(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 11: a request kills its worker, with all others and again alone. It is answered 500."""
    faults = fault(f"die:token={MARK}", tmp_path)
    async with scene(restarts={"worker": 2}, **faults) as one:
        await one.load([*many(COUNT, LENGTH), MARKED], no_fault, failing={COUNT: "request_crashed_worker"})
        assert (await one.at_rest()).crashed_requests == 1


async def test_its_numbers_are_none(scene: "NewScene", tmp_path: Path) -> None:
    """Scenario 12: a request's logits are not finite: its KV is garbage that nobody may find again."""
    async with scene(**fault(f"nan:token={MARK},times=1", tmp_path)) as one:
        await one.load([*many(COUNT, LENGTH), MARKED], no_fault, failing={COUNT: "numerical_error"})
        await one.load([MARKED], no_fault)
