"""How many CPU threads a step is computed with. Knows nothing of what is computed.

A second thread pays when it has enough to do between two meetings of all threads: with the bundled model
(2.8 million weights) 1 and 8 tokens are as fast or faster on one thread (0.7 against 1.2 ms and 1.7
against 1.8), 32 and 128 tokens are faster on two (2.6 against 3.4 ms and 6.9 against 10.4; AVX-512
server cores of 2025). What a small step leaves free, the rest of the stack uses.

How long a waiting thread spins before it sleeps (GOMP_SPINCOUNT, set in __main__.py before torch is
loaded) is some ten microseconds, about the time between two operations. The default of milliseconds
starves whoever shares the cores: with a busy neighbour a step of 3 ms was seen to take 200. Sleeping at
once makes steps of 128 tokens 2.4 times slower.
"""

import os
from pathlib import Path

import torch

_LEAST_PRODUCTS = 48_000_000
"""Tokens times weights from which all threads are used."""


class StepThreads:
    """Sets torch's number of threads for each step."""

    def __init__(self, most: int, num_weights: int) -> None:
        self._most = most
        self._least_tokens = _LEAST_PRODUCTS // max(num_weights, 1)
        self._now = 0

    def set_for(self, num_tokens: int) -> None:
        """Costs nothing while the answer stays the same."""
        wanted = self._most if num_tokens > self._least_tokens else 1
        if wanted != self._now:
            torch.set_num_threads(wanted)
            self._now = wanted


def physical_cores() -> int:
    """Processor cores that this process may use, hyperthreads not counted."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        names = [topology / "physical_package_id", topology / "core_id"]
        cores.add(tuple(n.read_text() for n in names) if all(n.exists() for n in names) else (str(cpu),))
    return len(cores)
