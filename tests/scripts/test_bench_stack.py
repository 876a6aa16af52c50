"""The server that a benchmark starts."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

BENCHMARK = """
import signal
from scripts.bench.stack import serving
with serving(["--worker", "stub"]) as stack:
    print(*(pid for of_kind in stack.pids.values() for pid in of_kind), flush=True)
    signal.pause()
"""


def test_a_killed_benchmark_leaves_no_process() -> None:
    root = Path(__file__).parents[2]
    benchmark = subprocess.Popen([sys.executable, "-c", BENCHMARK], stdout=subprocess.PIPE, cwd=root)
    with benchmark:
        assert benchmark.stdout is not None
        ends = [os.pidfd_open(int(pid)) for pid in benchmark.stdout.readline().split()]
        assert ends
        benchmark.send_signal(signal.SIGKILL)
    for end in ends:  # readable once the process is gone
        wait_readable(end)
        os.close(end)


def wait_readable(descriptor: int, deadline_s: float = 30.0) -> None:
    assert select.select([descriptor], [], [], deadline_s)[0], f"alive after {deadline_s} s"
