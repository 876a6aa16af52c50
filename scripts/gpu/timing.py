"""Times on a GPU, by replaying a graph: what the device takes, without what launching takes.

Inputs rotate through several copies, together larger than the L2 cache, because a kernel that is timed over
and over on the same weights reads them from there.
"""

from collections.abc import Callable, Sequence

import torch

from .results import median

L2_BYTES = 128 << 20
"""More than any L2 so far."""


def copies(bytes_each: int) -> int:
    """How many inputs to rotate through."""
    return max(2, -(-2 * L2_BYTES // max(bytes_each, 1)))


def replayed_s(calls: Sequence[Callable[[], object]], repetitions: int = 7) -> tuple[float, float, float]:
    """(median, least, largest) seconds of one call: each call once per replay, replays timed by events."""
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
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return median(times), min(times), max(times)
