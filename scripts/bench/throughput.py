"""Tokens per second of a real model at several concurrencies, beside transformers on the same prompts."""

import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .load import completion_request, percentile, together
from .peers.peer import Peer, peer
from .stack import Stack, serving


@dataclass
class Point:
    """One concurrency; a list holds one figure per repetition."""

    concurrency: int
    ours: list[float] = field(default_factory=list)
    generate: list[float] = field(default_factory=list)
    continuous: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    """Of every stream of every repetition."""
    gap_ms: list[float] = field(default_factory=list)


async def measure(
    model: str,
    vocab_size: int,
    concurrencies: Sequence[int],
    prompt_tokens: int,
    num_tokens: int,
    repetitions: int,
    threads: int,
    arguments: list[str],
    *,
    peers: bool,
) -> list[Point]:
    """Alternates ours, generate and continuous batching; prompts are fresh each time, so no cache helps."""
    draw = random.Random(0)

    def prompts(count: int) -> list[list[int]]:
        return [[draw.randrange(300, vocab_size) for _ in range(prompt_tokens)] for _ in range(count)]

    points = [Point(concurrency) for concurrency in concurrencies]
    with (
        serving(["--model", model, *arguments]) as stack,
        tempfile.NamedTemporaryFile() as log,
        peer(sys.executable, "transformers", [model, str(threads)], Path(log.name)) as process,
    ):
        for repetition in range(-1, repetitions):  # the first is a warm-up of everyone, and is not counted
            for point in points if repetition >= 0 else [Point(point.concurrency) for point in points]:
                batch = prompts(point.concurrency)
                await _ours(stack, point, batch, num_tokens)
                if peers:
                    _theirs(process, point, batch, num_tokens)
    return points


async def _ours(stack: Stack, point: Point, prompts: list[list[int]], num_tokens: int) -> None:
    requests = [completion_request(prompt, num_tokens) for prompt in prompts]
    streams, seconds = await together(stack.host, stack.port, requests)
    total = sum(stream.num_tokens for stream in streams)
    assert total == len(prompts) * num_tokens
    point.ours.append(total / seconds)
    point.ttft_ms += [stream.ttft_s * 1e3 for stream in streams]
    point.gap_ms += [gap * 1e3 for stream in streams for gap in stream.gaps_s]


def _theirs(process: Peer, point: Point, prompts: list[list[int]], num_tokens: int) -> None:
    total = len(prompts) * num_tokens
    point.generate.append(total / process.seconds("generate", prompts, num_tokens))
    point.continuous.append(total / process.seconds("continuous", prompts, num_tokens))


def report(points: Sequence[Point]) -> str:
    """Medians (least – most) of the repetitions; ratios are of medians."""

    def cell(values: list[float]) -> str:
        if not values:
            return "not measured"
        return f"{statistics.median(values):,.0f} ({min(values):,.0f} – {max(values):,.0f})"

    def ahead(point: Point, other: list[float]) -> str:
        return f"{statistics.median(point.ours) / statistics.median(other):.1f}×" if other else "–"

    def tail(values: list[float]) -> str:
        return " / ".join(f"{percentile(values, percent):.1f}" for percent in (50, 95, 99))

    lines = [
        "| streams | Tern, tok/s | generate, tok/s | continuous batching, tok/s | ahead of them "
        "| TTFT p50 / p95 / p99, ms | between chunks p50 / p95 / p99, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for point in points:
        lines.append(
            f"| {point.concurrency} | {cell(point.ours)} | {cell(point.generate)} | {cell(point.continuous)} "
            f"| {ahead(point, point.generate)}, {ahead(point, point.continuous)} "
            f"| {tail(point.ttft_ms)} | {tail(point.gap_ms)} |"
        )
    return "\n".join(lines)
