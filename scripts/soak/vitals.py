"""Vitals: memory, threads and open files of every process of a server over time, and whether they grow.

A restarted process begins anew. Memory and threads are judged by the slope over the second half of a
process's samples, open files at rest, before the load and after: under load they follow the connections.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("supervisor", "engine_core", "worker", "frontend")
MOST_MEMORY_MB = 8.0
"""Growth of one process over the second half of its life; what allocators keep moves by a few …"""
MOST_MEMORY_MB_PER_REQUEST = 1e-4
"""… and on top of it what would be a leak of a hundred bytes per request."""
MOST_THREADS = 2.0
MOST_OPEN_FILES = 8
"""More than before, of a process at rest."""
FEWEST_SAMPLES = 12
"""Of a process that is judged."""


@dataclass(frozen=True)
class Sample:
    """Of one process."""

    at_s: float
    memory_mb: float
    threads: int
    open_files: int
    requests: int
    """Answered by the whole server so far."""


@dataclass(frozen=True)
class Growth:
    """Of one process over the second half of its samples: slope times time."""

    kind: str
    pid: int
    samples: int
    memory_mb: float
    threads: float
    requests: int

    @property
    def is_flat(self) -> bool:
        most_memory = MOST_MEMORY_MB + MOST_MEMORY_MB_PER_REQUEST * self.requests
        return self.memory_mb <= most_memory and self.threads <= MOST_THREADS


class Vitals:
    """Samples of all processes that have lived."""

    def __init__(self) -> None:
        self.by_process: defaultdict[tuple[str, int], list[Sample]] = defaultdict(list)

    def look(self, pids: Mapping[str, Sequence[int]], requests: int) -> None:
        """Sample whatever lives."""
        for kind in KINDS:
            for pid in pids[kind]:
                if (sample := read(pid, requests)) is not None:
                    self.by_process[kind, pid].append(sample)

    def growths(self) -> list[Growth]:
        """Of those that lived long enough to be judged."""
        return [
            growth_of(kind, pid, samples)
            for (kind, pid), samples in self.by_process.items()
            if len(samples) >= FEWEST_SAMPLES
        ]


def read(pid: int, requests: int) -> Sample | None:
    """A process as it is now; None when it is gone."""
    folder = Path("/proc", str(pid))
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return Sample(
            at_s=time.monotonic(),
            memory_mb=int(status["VmRSS"].split()[0]) / 1024,
            threads=int(status["Threads"]),
            open_files=len(list((folder / "fd").iterdir())),
            requests=requests,
        )
    except (OSError, KeyError):
        return None


def open_files_at_rest(pids: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """By kind, of the process that has most."""

    def most(kind: str) -> int:
        samples = [read(pid, 0) for pid in pids[kind]]
        return max((sample.open_files for sample in samples if sample is not None), default=0)

    return {kind: most(kind) for kind in KINDS}


def growth_of(kind: str, pid: int, samples: Sequence[Sample]) -> Growth:
    """Over the second half of the samples."""
    half = samples[len(samples) // 2 :]
    times = [sample.at_s for sample in half]
    span_s = times[-1] - times[0]

    def grown(values: list[float]) -> float:
        return statistics.linear_regression(times, values).slope * span_s

    return Growth(
        kind,
        pid,
        len(samples),
        grown([sample.memory_mb for sample in half]),
        grown([float(sample.threads) for sample in half]),
        half[-1].requests - half[0].requests,
    )
