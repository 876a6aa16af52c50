"""How long the stack takes to see that something died, and to go on, as its clients feel it.

A gap is the longest silence of a stream that ends after the fault: what a reader of the answer waits.
Seen is the time until another process has been started in the dead one's place. A worker that is told to
hang does so at a step, not at a time of ours: its fault begins with the last token before the silence.
"""

import asyncio
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from protocol.client import EngineClient
from protocol.errors import Unavailable
from protocol.messages import EngineStats

from .load import Stream, completion_request, one, percentile
from .stack import Stack, serving

STREAMS = 64
STUB = ("--worker", "stub", "--max-restarts", "1000000", "--num-kv-blocks", "16384")
TORCH = ("--worker", "torch", "--max-restarts", "1000000")
NUM_TOKENS = {"stub": 1500, "torch": 300}
"""Of each answer, by worker: so many that all streams are still open when a fault arrives."""
_TOKENS_BEFORE = 50
"""Of each stream, about, before the fault."""
_TOKENS_BEFORE_RESTART = 15
_HANG_STEP = 200
_LOOK_AGAIN_S = 0.002
_DEADLINE_S = 120.0
_KILL_EVERY_S = 30.0
_GOODPUT_TOKENS = 300
"""Of each answer while goodput is measured."""


@dataclass
class Figures:
    """Of one kind of fault."""

    name: str
    goal: str
    times_s: list[float] = field(default_factory=list)
    """What the goal is about."""
    seen_s: list[float] = field(default_factory=list)
    failed: int = 0
    requests: int = 0

    def ended(self, streams: Sequence[Stream], num_tokens: int) -> None:
        """Count those that did not get all of their answer."""
        self.requests += len(streams)
        self.failed += sum(bool(stream.error) or stream.num_tokens != num_tokens for stream in streams)

    def row(self, *, with_seen: bool) -> str:
        cells = [self.name, _percentiles(self.seen_s), _percentiles(self.times_s), self.goal]
        if not with_seen:
            del cells[1]
        cells.append(f"{self.failed} of {self.requests}" if self.requests else "–")
        return f"| {' | '.join(cells)} |"


async def measure(repetitions: int, goodput_s: float, serve_arguments: Sequence[str]) -> str:
    """Everything, as tables."""
    stub, torch = [*STUB, *serve_arguments], [*TORCH, *serve_arguments]
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    silences = [
        await _struck(Figures("engine core, SIGKILL", "gap p99 ≤ 1"), "engine_core", kill, stub, repetitions),
        await _struck(Figures("worker (stub), SIGKILL", "gap p99 ≤ 0.8"), "worker", kill, stub, repetitions),
        await _struck(Figures("worker (torch), SIGKILL", "gap p99 ≤ 5"), "worker", kill, torch, repetitions),
        await _struck(Figures("worker (stub), SIGSTOP", "seen ≤ 1"), "worker", stop, stub, repetitions),
        await _hung(Figures("worker (stub), hangs with the GIL", "seen ≤ 2"), stub, repetitions),
    ]
    with serving(stub) as stack:
        ends = [
            await _frontend_killed(stack, repetitions),
            await _clients_gone(stack, repetitions),
        ]
    ends += [await _supervisor_killed(stub, repetitions), await _drained(stub, repetitions)]
    return "\n".join(
        [
            f"{repetitions} of each, in the middle of {STREAMS} streams; seconds, p50 / p99:",
            "",
            "| fault | seen | gap of a stream | goal | failed requests |",
            "|---|---|---|---|---|",
            *(figures.row(with_seen=True) for figures in silences),
            "",
            "| event | time | goal | failed requests |",
            "|---|---|---|---|",
            *(figures.row(with_seen=False) for figures in ends),
            "",
            await _goodput(stub, goodput_s),
        ]
    )


async def measure_restart(repetitions: int, arguments: Sequence[str]) -> str:
    """Of one stream at a time, the only one, whose worker is killed."""
    gaps, failed = [], 0
    with serving([*arguments, "--max-restarts", "1000000"]) as stack:
        first_mb = stack.rss_mb("worker")
        async with _core(stack) as core:
            for number in range(repetitions):
                await _until_stats(core, _is_at_rest)
                enough = (await core.ping()).stats.generation_tokens + _TOKENS_BEFORE_RESTART
                request = completion_request([7, 9 + number], 8 * _TOKENS_BEFORE_RESTART)
                task = asyncio.create_task(one(stack.host, stack.port, request))
                await _until_stats(core, partial(_has_generated, enough))
                began = time.perf_counter()
                os.kill(stack.pids["worker"][0], signal.SIGKILL)
                stream = await task
                gaps.append(_gap(stream, began)[0])
                failed += bool(stream.error)
        cells = [f"{number:.2f}" for number in (statistics.median(gaps), min(gaps), max(gaps))]
        cells += [f"{number:.0f}" for number in (first_mb, stack.rss_mb("worker"))]
    return "\n".join(
        [
            f"Ready after {stack.ready_s:.1f} s. {repetitions} kills of the worker, each amid a stream: "
            f"the longest silence since (s); {failed} streams failed. Resident memory in MB:",
            "",
            "| silence, median | least | most | the first worker's memory | the last one's |",
            "|---|---|---|---|---|",
            f"| {' | '.join(cells)} |",
        ]
    )


# ── faults that streams survive ─────────────────────────────────────────────────────────────────


async def _struck(
    figures: Figures, kind: str, number: signal.Signals, arguments: list[str], repetitions: int
) -> Figures:
    """A signal to the only process of a kind, again and again on one server."""
    num_tokens = NUM_TOKENS["torch" if "torch" in arguments else "stub"]
    with serving(arguments) as stack:
        async with _core(stack) as core:
            for _ in range(repetitions):
                tasks = await _load(stack, core, num_tokens)
                [pid] = stack.pids[kind]
                began = time.perf_counter()
                os.kill(pid, number)
                seen = await _until(partial(_is_replaced, stack, kind, pid))
                streams = await asyncio.gather(*tasks)
                figures.seen_s.append(seen - began)
                figures.times_s += [gap for stream in streams if (gap := _gap(stream, began)[0])]
                figures.ended(streams, num_tokens)
    return figures


async def _hung(figures: Figures, arguments: list[str], repetitions: int) -> Figures:
    """The worker hangs once in the life of each of several servers."""
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="tern-faults-") as folder:
            faults = {"TERN_FAULTS": f"hang_gil:step={_HANG_STEP},times=1", "TERN_FAULTS_DIR": folder}
            with serving(arguments, faults) as stack:
                [pid] = stack.pids["worker"]
                tasks = _ask(stack, NUM_TOKENS["stub"])
                seen = await _until(partial(_is_replaced, stack, "worker", pid))
                streams = await asyncio.gather(*tasks)
        gaps = [_gap(stream, 0.0) for stream in streams]
        figures.times_s += [gap for gap, _ in gaps]
        figures.seen_s.append(seen - statistics.median(began for _, began in gaps))
        figures.ended(streams, NUM_TOKENS["stub"])
    return figures


# ── ends ────────────────────────────────────────────────────────────────────────────────────────


async def _frontend_killed(stack: Stack, repetitions: int) -> Figures:
    figures = Figures("only frontend, SIGKILL → its blocks are free", "≤ 0.05 and a step")
    async with _core(stack) as core:
        for _ in range(repetitions):
            tasks = await _load(stack, core)
            [pid] = stack.pids["frontend"]
            began = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            await _until_stats(core, _is_at_rest)
            figures.times_s.append(time.perf_counter() - began)
            await asyncio.gather(*tasks)
            await _until(partial(_is_replaced, stack, "frontend", pid))
    return figures


async def _clients_gone(stack: Stack, repetitions: int) -> Figures:
    figures = Figures(f"{STREAMS} clients hang up → aborted, blocks free", "≤ 0.1")
    async with _core(stack) as core:
        for _ in range(repetitions):
            tasks = await _load(stack, core)
            began = time.perf_counter()
            for task in tasks:
                task.cancel()
            await _until_stats(core, _is_at_rest)
            figures.times_s.append(time.perf_counter() - began)
            await asyncio.gather(*tasks, return_exceptions=True)
    return figures


async def _supervisor_killed(arguments: list[str], repetitions: int) -> Figures:
    figures = Figures("supervisor, SIGKILL → no process is left, the port is free", "≤ 2")
    for _ in range(repetitions):
        with serving(arguments) as stack:
            async with _core(stack) as core:
                tasks = await _load(stack, core)
                pids = [pid for of_kind in stack.pids.values() for pid in of_kind]
                began = time.perf_counter()
                os.kill(stack.pids["supervisor"][0], signal.SIGKILL)
                ended = await _until(partial(_is_over, pids, stack.port))
                figures.times_s.append(ended - began)
                await asyncio.gather(*tasks)
    return figures


async def _drained(arguments: list[str], repetitions: int) -> Figures:
    figures = Figures("SIGTERM → all streams complete, no process is left", "≤ 10")
    for _ in range(repetitions):
        with serving(arguments) as stack:
            async with _core(stack) as core:
                tasks = await _load(stack, core)
            pids = [pid for of_kind in stack.pids.values() for pid in of_kind]
            began = time.perf_counter()
            os.kill(stack.pids["supervisor"][0], signal.SIGTERM)
            streams = await asyncio.gather(*tasks)
            ended = await _until(partial(_is_over, pids, stack.port))
            figures.times_s.append(ended - began)
            figures.ended(streams, NUM_TOKENS["stub"])
    return figures


# ── goodput ─────────────────────────────────────────────────────────────────────────────────────


async def _goodput(arguments: list[str], seconds: float) -> str:
    """Tokens per second of answers that were complete: without faults and with, twice in turn."""
    with serving(arguments) as stack:
        counts: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for kills in (False, True, False, True):
            counts[kills].append(await _goodput_of(stack, seconds / 2, kills=kills))
    plain, faulty = ([sum(column) for column in zip(*counts[kills], strict=True)] for kills in (False, True))
    return (
        f"Goodput over {seconds:g} s each, in halves in turn: {plain[0] / seconds:,.0f} tokens/s without "
        f"faults, {faulty[0] / seconds:,.0f} with a kill of the worker (stub) every {_KILL_EVERY_S:g} s: "
        f"{faulty[0] / max(plain[0], 1):.1%} (goal ≥ 85 %); {plain[1] + faulty[1]} requests failed."
    )


async def _goodput_of(stack: Stack, seconds: float, *, kills: bool) -> tuple[int, int]:
    """(tokens of complete answers, requests that failed)."""
    end = time.perf_counter() + seconds
    good = failed = 0

    async def user(number: int) -> None:
        nonlocal good, failed
        request = completion_request([7, 9 + number], _GOODPUT_TOKENS)
        while time.perf_counter() < end:
            stream = await one(stack.host, stack.port, request)
            failed += bool(stream.error)
            good += stream.num_tokens

    async def killer() -> None:
        await asyncio.sleep(min(_KILL_EVERY_S, seconds) / 2)
        while True:
            os.kill(stack.pids["worker"][0], signal.SIGKILL)
            await asyncio.sleep(_KILL_EVERY_S)

    killing = asyncio.create_task(killer()) if kills else None
    await asyncio.gather(*map(user, range(STREAMS)))
    if killing is not None:
        killing.cancel()
    return good, failed


# ── load, and looking ───────────────────────────────────────────────────────────────────────────


async def _load(
    stack: Stack, core: EngineClient, num_tokens: int = NUM_TOKENS["stub"]
) -> list["asyncio.Task[Stream]"]:
    """Streams that are all in the middle of their answers."""
    await _until_stats(core, _is_at_rest)
    before = (await core.ping()).stats.generation_tokens
    tasks = _ask(stack, num_tokens)
    enough = before + STREAMS * _TOKENS_BEFORE
    await _until_stats(core, lambda s: s.num_running >= STREAMS and s.generation_tokens >= enough)
    return tasks


def _ask(stack: Stack, num_tokens: int) -> list["asyncio.Task[Stream]"]:
    """Answers of which every token is text: an end-of-sequence token in the middle would be a silence."""
    text = {"ignore_eos": False, "min_tokens": num_tokens}
    requests = [completion_request([7, 9 + i], num_tokens, **text) for i in range(STREAMS)]
    return [asyncio.create_task(one(stack.host, stack.port, request)) for request in requests]


@asynccontextmanager
async def _core(stack: Stack) -> AsyncIterator[EngineClient]:
    """The engine core, or whichever takes its place."""
    client = await EngineClient.attach(str(Path(stack.run_dir, "endpoint")))
    try:
        yield client
    finally:
        await client.close()


async def _until_stats(core: EngineClient, condition: Callable[[EngineStats], bool]) -> None:
    """Ask again and again without a pause: an answer takes no longer than a step."""
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            with suppress(Unavailable):
                if condition((await core.ping()).stats):
                    return


async def _until(condition: Callable[[], bool]) -> float:
    """When it came true (time.perf_counter)."""
    async with asyncio.timeout(_DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - another process's doing, of which no event tells
            await asyncio.sleep(_LOOK_AGAIN_S)
    return time.perf_counter()


def _has_generated(enough: int, stats: EngineStats) -> bool:
    return stats.generation_tokens >= enough


def _is_at_rest(stats: EngineStats) -> bool:
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks


def _gap(stream: Stream, since: float) -> tuple[float, float]:
    """(longest silence that ends after `since`, when it began); zeros if nothing came after."""
    times = [stream.began, *(stream.began + arrival for arrival in stream.arrivals)]
    gaps = [(late - early, early) for early, late in pairwise(times) if late > since]
    return max(gaps, default=(0.0, 0.0))


def _is_replaced(stack: Stack, kind: str, pid: int) -> bool:
    return stack.pids.get(kind, []) not in ([pid], [])


def _is_over(pids: Sequence[int], port: int) -> bool:
    """None of the processes runs, and the port is free. What is left of a zombie is for its parent."""
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _percentiles(values: Sequence[float]) -> str:
    return f"{percentile(values, 50):.3f} / {percentile(values, 99):.3f}" if values else "–"
