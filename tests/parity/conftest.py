"""Runners of checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worker.driver import Driver, quiet, worker_config
from worker.runner import TorchRunner

Load = Callable[..., Driver]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """load(checkpoint, block_size=…) is a driver of a freshly loaded runner."""

    def load_(folder: Path, **options: Any) -> Driver:
        return Driver(TorchRunner(worker_config(folder, tmp_path, **options), quiet))

    return load_
