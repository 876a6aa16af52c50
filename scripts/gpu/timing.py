"""Times of kernels. On a GPU by replaying a graph: what the device takes, without what launching takes.

Inputs rotate through several copies, together larger than the L2 cache, because a kernel that is timed over
and over on the same weights reads them from there. On a CPU, where kernels are only rehearsed, by the clock.
"""

import time
from collections.abc import Callable, Sequence

import torch

from .results import median

L2_BYTES = 128 << 20
"""More than any L2 so far."""
Calls = Sequence[Callable[[], object]]


def copies(bytes_each: int, device: torch.device) -> int:
    """How many inputs to rotate through."""
    return max(2, -(-2 * L2_BYTES // max(bytes_each, 1))) if device.type == "cuda" else 1


def seconds(calls: Calls, device: torch.device, repetitions: int = 7) -> tuple[float, float, float]:
    """(median, least, largest) seconds of one call, each call once per repetition."""
    times = [taken / len(calls) for taken in _taken(calls, device, repetitions)]
    return median(times), min(times), max(times)


def launched_s(calls: Calls, device: torch.device, repetitions: int = 7) -> tuple[float, float, float]:
    """The same with each kernel launched from Python, on the host's clock, until the device is done."""
    times = []
    if device.type != "cuda":
        repetitions = 1
    for call in calls[:2]:
        call()  # compiles
    for _ in range(repetitions):
        _wait(device)
        began = time.perf_counter()
        for call in calls:
            call()
        _wait(device)
        times.append((time.perf_counter() - began) / len(calls))
    return median(times), min(times), max(times)


def _taken(calls: Calls, device: torch.device, repetitions: int) -> list[float]:
    if device.type != "cuda":
        return [launched_s(calls, device)[0] * len(calls)]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repetitions):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
