"""The benchmarks of scripts/gpu that time kernels: each runs, small."""

import torch

from scripts.gpu import ceilings, kernels
from scripts.gpu.floors import Ceilings
from scripts.gpu.job_process import TINY_KERNELS
from scripts.gpu.results import Measurement

BOUND = Ceilings(1e12, {"bf16": 1e14})


def test_kernels_beside_the_ceiling_and_torch(device: torch.device) -> None:
    found = list(kernels.measure(device, torch.float32, BOUND, TINY_KERNELS))
    names = [m.name for m in found]
    assert len(set(names)) == len(names)
    assert all(m.value > 0 for m in found)
    assert sum(m.ratio is None for m in found) == 4, "page tables stand beside one another"
    gemv = next(m for m in found if m.name.startswith("gemv bf16 1 × [128, 128]"))
    assert gemv.limit == 4 * 128 * 128 / 1e12 * 1e6
    prefill = next(m for m in found if m.name.startswith("prefill attention"))
    assert prefill.limit == 2 * 32 * 32 * 4 * 32 / 1e14 * 1e6


def test_ceilings_are_the_best_of_each(device: torch.device) -> None:
    found = list(ceilings.measure(device, torch.float32, numbers=1 << 12, size=64, count=2))
    measured = [one for one in found if isinstance(one, Measurement)]
    last = [one for one in found if isinstance(one, Ceilings)][-1]
    assert last.bytes_per_s == max(m.value for m in measured if m.unit == "TB/s") * 1e12
    products = [m.value for m in measured if m.unit == "TFLOP/s"]
    assert list(last.rates.values()) == [value * 1e12 for value in products]
    assert sum("in a graph" in m.name for m in measured) == 2
