"""An engine core as a worker sees it, and workers in threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from protocol.progress import Progress
from tests.worker.core import Core, WorkerThread, stub_config
from tests.worker.gate import Gate, Run


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers at random for each test, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    core = Core(tmp_path)
    yield core
    core.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """run(runner, progress=…, rank=…, size=…) is a running worker."""
    threads: list[WorkerThread] = []

    def start(
        runner: Gate, progress: Progress | None = None, *, rank: int = 0, size: int = 1
    ) -> WorkerThread:
        threads.append(WorkerThread(stub_config(tmp_path, rank=rank, size=size), runner, progress))
        return threads[-1]

    yield start
    for thread in threads:
        thread.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open.set()
