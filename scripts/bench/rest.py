"""What the stack takes when nobody asks for anything: memory, CPU, and the time until it is ready."""

import asyncio
import time
from pathlib import Path

from .load import completion_request, together
from .stack import Stack, serving

_KINDS = ("supervisor", "engine_core", "frontend", "worker")


def measure(arguments: list[str], idle_s: float) -> str:
    """A table of one start of the stack."""
    with serving(arguments) as stack:
        time.sleep(1)  # what start-up leaves behind is not rest
        before = {kind: stack.cpu_s(kind) for kind in _KINDS}
        time.sleep(idle_s)
        idle = {kind: (stack.cpu_s(kind) - before[kind]) / idle_s * 100 for kind in _KINDS}
        lines = ["| process | resident, MB | CPU when idle |", "|---|---|---|"]
        lines += [f"| {kind} | {stack.rss_mb(kind):.0f} | {idle[kind]:.2f} % |" for kind in _KINDS]
        lines += ["", f"From the command to ready: {stack.ready_s:.1f} s"]
        return "\n".join(lines)


async def measure_growth(arguments: list[str], num_requests: int, at_once: int) -> str:
    """Resident memory before and after many small requests; also what the prefix cache may not hide."""
    with serving(arguments) as stack:
        rows = []
        done = 0
        for batch in range(0, num_requests, at_once):
            requests = [completion_request([5, (batch + i) % 500, i % 500], 4) for i in range(at_once)]
            await together(stack.host, stack.port, requests)
            done += at_once
            if done == at_once or done % max(num_requests // 5 // at_once * at_once, at_once) == 0:
                await asyncio.sleep(0.5)  # connections that are on their way out
                rows.append((done, {kind: stack.rss_mb(kind) for kind in _KINDS}, _open_files(stack)))
        lines = ["| after requests | " + " | ".join(f"{kind}, MB" for kind in _KINDS) + " | open files |"]
        lines += ["|---" * (len(_KINDS) + 2) + "|"]
        for count, memory, files in rows:
            cells = " | ".join(f"{memory[kind]:.1f}" for kind in _KINDS)
            lines.append(f"| {count:,} | {cells} | {files} |")
        return "\n".join(lines)


def _open_files(stack: Stack) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for kind in _KINDS for pid in stack.pids[kind])
