"""Gate: the stub, which fails and waits where a test tells it to; and what a test says to it."""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from protocol import columns
from protocol.steps import StepMasks, StepPlan, StepResult
from tests.worker.core import Core, WorkerThread, next_plan, stub_config
from worker.stub import StubRunner
from worker.worker import MaskSource, carried

PROMPT = [5, 6, 7]
Run = Callable[..., WorkerThread]


class Gate(StubRunner):
    """Raises what it is told to, and waits where it is told to."""

    def __init__(self, folder: Path, *, rank: int = 0, size: int = 1) -> None:
        super().__init__(stub_config(folder, rank=rank, size=size))
        self.errors: list[Exception | None] = []
        """Of the next steps; None: that one succeeds."""
        self.open = threading.Event()
        self.open.set()
        self.steps = 0

    def execute(self, plan: StepPlan, masks: MaskSource = carried) -> StepResult:
        self.steps += 1
        assert self.open.wait(60)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return super().execute(plan, masks)


def sampled(core: Core) -> list[int]:
    result = core.next()
    assert isinstance(result, StepResult), result
    return list(columns.unpack_ids(result.token_ids))


def maskless_plan(step: int, *, epoch: int = 1) -> StepPlan:
    return msgspec.structs.replace(next_plan(step, epoch=epoch), masked_rows=columns.pack_ids([0]))


def masks_of(step: int, token: int, *, epoch: int = 1) -> StepMasks:
    """That token alone."""
    return StepMasks(epoch, step, (1 << token).to_bytes(512 // 8, "little"))
