"""transformers' continuous batching as a peer, on the CPU."""

import time
from pathlib import Path

import pytest
import torch

from scripts.gpu import batching
from scripts.gpu.served import nano_vllm_workload
from scripts.gpu.shapes import TINY

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("default")
def test_tokens_a_second_of_the_whole_workload(tmp_path: Path) -> None:
    workload = nano_vllm_workload(2, 8, 4, 100)
    end = time.monotonic() + 60
    (found,) = batching.measure(CPU, torch.float32, TINY, workload, tmp_path, end, cache=(16, 256))
    assert found.value > 0
    assert "cut off" not in found.name
