"""What the stack itself costs: the stub worker answers at once, so all that is left is ours.

Compared in the same run with the least that any ASGI server must do per token: `await send(chunk)`.
"""

import asyncio
import socket
import statistics
import subprocess
import sys
import urllib.request
from dataclasses import dataclass

from protocol.client import EngineClient

from .load import completion_request, one, percentile, together
from .stack import Stack, serving

_LOOK_EVERY_S = 0.02
_LEAST_STEPS = 50


@dataclass(frozen=True)
class Overhead:
    """Per streamed token, in microseconds of CPU; medians of the repetitions."""

    tokens_per_s: list[float]
    frontend_us: list[float]
    engine_core_us: list[float]
    tokens_per_chunk: list[float]
    bare_send_us: list[float]
    ttft_ms: list[float]
    engine_step_us: list[float]
    """Of a step while all streams run: without those in which some have not yet begun, or have ended."""


async def measure(num_streams: int, num_tokens: int, repetitions: int, arguments: list[str]) -> Overhead:
    """The stub stack and the bare loop in turn, `repetitions` times."""
    result = Overhead([], [], [], [], [], [], [])
    stub = ["--worker", "stub", "--max-num-seqs", str(num_streams), "--num-kv-blocks", "32768", *arguments]
    with serving(stub) as stack:
        client = await EngineClient.attach(f"{stack.run_dir}/endpoint", name="bench")
        requests = [completion_request([5, i % 500, 7], num_tokens) for i in range(num_streams)]
        await together(stack.host, stack.port, requests[:8])
        for _ in range(repetitions):
            await _stub_run(stack, client, requests, num_tokens, result)
            result.bare_send_us.append(await _bare_send(num_streams, num_tokens))
        await client.close()
    return result


async def _stub_run(
    stack: Stack, client: EngineClient, requests: list[bytes], num_tokens: int, result: Overhead
) -> None:
    total = len(requests) * num_tokens
    frontend, engine = stack.cpu_s("frontend"), stack.cpu_s("engine_core")
    steady = asyncio.create_task(_steady_step_us(stack, client, len(requests)))
    streams, seconds = await together(stack.host, stack.port, requests)
    assert sum(stream.num_tokens for stream in streams) == total
    frontend, engine = stack.cpu_s("frontend") - frontend, stack.cpu_s("engine_core") - engine
    result.engine_step_us.append(await steady)
    result.tokens_per_s.append(total / seconds)
    result.frontend_us.append(frontend / total * 1e6)
    result.engine_core_us.append(engine / total * 1e6)
    result.tokens_per_chunk.append(total / sum(len(stream.arrivals) for stream in streams))
    alone = [(await one(stack.host, stack.port, requests[0])).ttft_s * 1e3 for _ in range(20)]
    result.ttft_ms.append(percentile(alone, 50))


async def _steady_step_us(stack: Stack, client: EngineClient, num_streams: int) -> float:
    """CPU microseconds of the engine core per step in which so many streams run. Raises RuntimeError if there
    was no such time: ask for more tokens."""
    first = last = (0, 0.0)
    while True:
        stats, used_s = (await client.ping()).stats, stack.cpu_s("engine_core")
        if stats.num_running == num_streams:
            last = stats.steps, used_s
            first = first if first[0] else last
        elif first[0]:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if last[0] - first[0] < _LEAST_STEPS:
        raise RuntimeError(f"{num_streams} streams ran together for too few steps: raise --tokens")
    return (last[1] - first[1]) / (last[0] - first[0]) * 1e6


async def _bare_send(num_streams: int, num_tokens: int) -> float:
    """CPU microseconds per chunk of an ASGI application that does nothing but send."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "scripts.bench.bare_send", str(listener.fileno()), str(num_tokens)]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            request = b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            await together("127.0.0.1", port, [request])
            before = await asyncio.to_thread(_cpu_s, port)
            await together("127.0.0.1", port, [request] * num_streams)
            seconds = await asyncio.to_thread(_cpu_s, port) - before
            server.kill()
    return seconds / (num_streams * num_tokens) * 1e6


def _cpu_s(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/cpu", timeout=30) as response:
        return float(response.read())


def report(result: Overhead, num_streams: int) -> str:
    """A table: median (least – most) of each figure."""

    def row(name: str, values: list[float], digits: int, goal: str) -> str:
        middle = statistics.median(values)
        spread = f"{min(values):.{digits}f} – {max(values):.{digits}f}"
        return f"| {name} | {middle:.{digits}f} | {spread} | {goal} |"

    per_token = [step_us / num_streams for step_us in result.engine_step_us]
    ratio = [ours / bare for ours, bare in zip(result.frontend_us, result.bare_send_us, strict=True)]
    return "\n".join(
        [
            f"| {num_streams} streams, stub worker | median | least – most | goal |",
            "|---|---|---|---|",
            row("tokens/s, whole path", result.tokens_per_s, 0, "≥ 30,000"),
            row("frontend, µs CPU per token", result.frontend_us, 2, ""),
            row("bare ASGI send loop, µs CPU per chunk", result.bare_send_us, 2, ""),
            row("frontend / bare loop", ratio, 2, "≤ 2"),
            row(f"engine core, µs CPU per step of {num_streams}", result.engine_step_us, 0, "≤ 250"),
            row(f"the same per token of {num_streams}", per_token, 2, "≤ 1"),
            row("engine core, µs CPU per token of the whole run", result.engine_core_us, 2, ""),
            row("tokens per chunk as received", result.tokens_per_chunk, 2, ""),
            row("TTFT of one stream on an idle stack, ms", result.ttft_ms, 2, "< 3"),
        ]
    )
