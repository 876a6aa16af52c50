"""How many CPU threads a step is computed with: what has been measured to be faster, here and now.

A second thread pays when it has enough to do between two meetings of all threads, and when it has a core
to itself. With the bundled model (2.8 million weights) alone on two cores, 1 to 8 tokens are as fast or
faster on one thread (0.7 against 1.2 ms and 1.7 against 1.8), 32 and 128 tokens on two (2.6 against 3.4 ms
and 6.9 against 10.4; AVX-512 server cores of 2025). Beside a busy frontend two threads wait for each other
again and again, and one is faster then. So both are timed, one of them rarely.

How long a waiting thread spins before it sleeps (GOMP_SPINCOUNT, set in __main__.py before torch is
loaded) is some ten microseconds, about the time between two operations. The default of milliseconds
starves whoever shares the cores: with a busy neighbour a step of 3 ms was seen to take 200. Sleeping at
once makes steps of 128 tokens 2.4 times slower.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

_LEAST_PRODUCTS = 48_000_000
"""Tokens times weights from which all threads are tried first."""
_TRY_EVERY = 48
_TRIES = 3
"""Steps in a row for which the slower number is timed again, and how often: 6 % of the steps, which costs
2 % where one is a third slower. A decode step of 0.6 billion weights takes twice as long on one thread as on
two: what is found far slower is not tried again at once, and rests for twice as many steps each time."""
_FAR_SLOWER = 1.25
_MOST_REST = 16 * _TRY_EVERY
"""Steps. When the better number becomes the slower, its own times tell at once."""
_WEIGHT = 0.3
"""Of the newest step in the moving averages."""


class _Size:
    """Steps of about one size: seconds per token with one thread and with all."""

    def __init__(self, first: int) -> None:
        self.seconds: list[float | None] = [None, None]
        self.best = first
        self.try_every = _TRY_EVERY
        self.steps = 0
        """Since the last tries."""

    def choose(self) -> int:
        """0: one thread, 1: all of them."""
        if self.steps == self.try_every + _TRIES:
            self._plan_tries()
        self.steps += 1
        return 1 - self.best if self.steps > self.try_every else self.best

    def _plan_tries(self) -> None:
        self.steps = 0
        best, other = self.seconds[self.best], self.seconds[1 - self.best]
        far_slower = best is not None and other is not None and other > _FAR_SLOWER * best
        self.try_every = min(2 * self.try_every, _MOST_REST) if far_slower else _TRY_EVERY

    def record(self, choice: int, seconds: float) -> None:
        before = self.seconds[choice]
        self.seconds[choice] = seconds if before is None else before + _WEIGHT * (seconds - before)
        one, all_of_them = self.seconds
        if one is not None and all_of_them is not None:
            best = int(all_of_them < one)
            if best != self.best:
                self.best, self.try_every, self.steps = best, _TRY_EVERY, 0
            elif choice != best and seconds > _FAR_SLOWER * min(one, all_of_them):
                self._plan_tries()


class StepThreads:
    """Sets the threads of each step, torch's and our pool's: `begin` before its work, `end` after."""

    def __init__(
        self,
        most: int,
        num_weights: int,
        set_pool: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._most = most
        self._set_pool = set_pool
        self._clock = clock
        self._least_tokens = _LEAST_PRODUCTS // max(num_weights, 1)
        self._sizes: dict[int, _Size] = {}
        self._now = 0
        self._choice = 0
        self._num_tokens = 0
        self._began = 0.0

    def begin(self, num_tokens: int) -> None:
        """A step of so many tokens begins."""
        if self._most > 1:
            size = self._sizes.get(num_tokens.bit_length())
            if size is None:
                size = self._sizes[num_tokens.bit_length()] = _Size(int(num_tokens > self._least_tokens))
            self._choice = size.choose()
        wanted = self._most if self._choice else 1
        if wanted != self._now:
            torch.set_num_threads(wanted)
            if self._set_pool is not None:
                self._set_pool(wanted)
            self._now = wanted
        self._num_tokens = num_tokens
        self._began = self._clock()

    def end(self) -> None:
        """It is done."""
        if self._most > 1:
            seconds = (self._clock() - self._began) / self._num_tokens
            self._sizes[self._num_tokens.bit_length()].record(self._choice, seconds)


def physical_cores() -> int:
    """Processor cores that this process may use, hyperthreads not counted."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        names = [topology / "physical_package_id", topology / "core_id"]
        cores.add(tuple(n.read_text() for n in names) if all(n.exists() for n in names) else (str(cpu),))
    return len(cores)
