"""A model with a sliding window, in blocks that would not suffice without: it survives like any other."""

from typing import TYPE_CHECKING

import pytest

from tests.faults.at_rest import Core
from tests.faults.load import MARK, ask, many, no_fault
from tests.faults.strikes import KILL, at

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene

FEW = (
    "--block-size",
    "16",
    "--num-kv-blocks",
    "120",
    "--max-num-batched-tokens",
    "64",
    "--max-num-seqs",
    "32",
)
"""1,920 tokens, where 32 streams of 300 tokens need 9,600 and their windows 2,000."""


@pytest.mark.parametrize("kind", ["worker", "engine_core"])
async def test_killed(scene: "NewScene", kind: str) -> None:
    async with scene(*FEW, sliding=True, restarts={kind: 1}) as one:
        await one.load(many(32, 300), at(640, one, KILL, kind))
        async with Core.of(one.stack) as core:
            assert (await core.stats()).num_blocks == 120


async def test_its_numbers_are_none(scene: "NewScene") -> None:
    """What a sick request holds is garbage; what its window has left may be somebody else's, and is not."""
    head = [9, 8, 7, *range(20, 60)]
    marked, alike = ask([*head, MARK, *range(60, 140), 11], 200), ask([*head, 10], 200)
    async with scene(*FEW, sliding=True, TERN_FAULTS=f"nan:token={MARK}") as one:
        await one.load([*many(15, 200), marked], no_fault, failing={15: "numerical_error"})
        await one.load([alike, marked], no_fault, failing={1: "numerical_error"})
