"""How soon a server that is full says so: 429 with Retry-After, while it serves all that it has taken.

As many streams as fit run, as many as may wait do, and whoever ends is replaced at once (crowd.py, a process
of its own). Beside them come requests that must be refused, a few at a time, each timed from its first byte
sent to its last received.
"""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass

from protocol.client import EngineClient

from .crowd import crowd
from .load import completion_request, percentile
from .stack import Stack, serving

RUNNING, WAITING = 64, 64
LENGTH = 100
"""Tokens of a stream that fills the server."""
GOAL_MS = 20


@dataclass(frozen=True)
class Overload:
    """What became of the requests that came when there was no room."""

    refused_ms: list[float]
    """Of those answered with 429 and a Retry-After."""
    retry_after_s: list[int]
    admitted: int
    """Came when one of the others had just ended."""
    served: int
    """Streams that filled the server and have ended meanwhile."""


async def measure(num_requests: int, at_once: int, arguments: list[str]) -> Overload:
    """Raises RuntimeError for an answer that is neither 200 nor a 429 with Retry-After."""
    limits = ["--max-num-seqs", str(RUNNING), "--max-num-waiting", str(WAITING)]
    with serving([*limits, *arguments]) as stack:
        client = await EngineClient.attach(f"{stack.run_dir}/endpoint", name="bench")
        result = Overload([], [], 0, 0)
        with crowd(stack, RUNNING + WAITING, LENGTH) as others:
            while (await client.ping()).stats.num_waiting < WAITING:
                others.check()
            admitted, left = 0, iter(range(num_requests))

            async def come() -> None:
                nonlocal admitted
                for _ in left:
                    if not await _refused(stack, result):
                        admitted += 1

            await asyncio.gather(*(come() for _ in range(at_once)))
            others.check()
            served = others.served()
        await client.close()
    return Overload(result.refused_ms, result.retry_after_s, admitted, served)


async def _refused(stack: Stack, result: Overload) -> bool:
    reader, writer = await asyncio.open_connection(stack.host, stack.port)
    began = time.perf_counter()
    writer.write(completion_request([6, 6, 6], 1))
    answer = await reader.read(-1)
    seconds = time.perf_counter() - began
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    if answer.startswith(b"HTTP/1.1 200"):
        return False
    wait = re.search(rb"\r\nretry-after: (\d+)\r\n", answer)
    if not answer.startswith(b"HTTP/1.1 429") or wait is None:
        raise RuntimeError(f"neither 200 nor 429 with Retry-After: {answer[:300]!r}")
    result.refused_ms.append(seconds * 1e3)
    result.retry_after_s.append(int(wait[1]))
    return True


def report(result: Overload) -> str:
    """A table."""
    p50, p95, p99 = (percentile(result.refused_ms, percent) for percent in (50, 95, 99))
    waits = f"{min(result.retry_after_s)} – {max(result.retry_after_s)} s"
    return "\n".join(
        [
            "| refused | p50 / p95 / p99, ms | goal | Retry-After | admitted meanwhile | streams served |",
            "|---|---|---|---|---|---|",
            f"| {len(result.refused_ms)} | {p50:.1f} / {p95:.1f} / {p99:.1f} | p99 ≤ {GOAL_MS} | {waits} "
            f"| {result.admitted} | {result.served} |",
        ]
    )
