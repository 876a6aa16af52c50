"""What a decoded token costs as contexts and batches grow, beside what reading memory alone would cost.

    seconds of a step ≥ (bytes of weights + sequences · context · KV bytes of a token) / reading speed

The model is loaded in this process and its steps are executed one after the other, without the rest of the
stack. Sequences begin as if all of their prompt had been found in the prefix cache: what the blocks hold does
not change what reading them takes.
"""

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from protocol import columns
from protocol.config import WorkerConfig
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan
from worker.kernels.native_matrix import NativeMatrix
from worker.runner import TorchRunner

from .plot import Line, plot

LONGEST_CELL_S = 20.0
"""Fewer steps are timed where one takes long; at least two are."""
READ_BYTES = 512 << 20


class Cell(NamedTuple):
    batch: int
    context: int
    seconds: float
    """Median of its steps."""
    read_s: float
    """What reading its bytes takes, at the reading speed."""


class Growth(NamedTuple):
    cells: list[Cell]
    weights_bytes: int
    token_bytes: int
    """KV of one token."""
    bytes_per_s: float
    """Reading speed of all threads."""


def measure(
    options: ModelOptions, contexts: Sequence[int], batches: Sequence[int], steps: int, cache: CacheOptions
) -> Growth:
    """Cells whose KV is larger than the cache are left out. Raises what loading a model raises."""
    longest = max(contexts) + steps + 1
    with tempfile.TemporaryDirectory(prefix="tern-bench-") as folder:
        config = WorkerConfig(
            incarnation=1,
            rank=0,
            group_dir=folder,
            model=msgspec.structs.replace(options, max_model_len=longest),
            cache=cache,
            scheduler=SchedulerOptions(max_num_seqs=max(batches)),
            parallel=ParallelOptions(),
        )
        runner = TorchRunner(config, lambda *_: None)
    for held in (runner.served.cache.tensor, runner.served.cache.scales):
        if held is not None:
            held.zero_()  # pages that nobody has written are all read from one page of zeros
    token_bytes = runner.facts.kv_bytes // (runner.facts.num_blocks * cache.block_size)
    speed = _reading_speed()
    weights_bytes = runner.facts.weights_bytes - _saved_bytes()
    cells = []
    for context in contexts:
        blocks = -(-(context + steps + 1) // cache.block_size)
        for batch in batches:
            if batch * blocks > runner.facts.num_blocks:
                continue
            seconds = statistics.median(_steps(runner, batch, context, blocks, steps))
            read = weights_bytes + batch * context * token_bytes
            cells.append(Cell(batch, context, seconds, read / speed))
    return Growth(cells, weights_bytes, token_bytes, speed)


def _steps(runner: TorchRunner, batch: int, context: int, blocks: int, steps: int) -> list[float]:
    """Seconds of decode steps of so many sequences; the first, which starts them, is not among them."""
    draw = np.random.default_rng(0)
    ids = columns.pack_ids(draw.integers(0, runner.facts.vocab_size, context).tolist())
    started = tuple(
        SequenceStart(
            slot=slot,
            token_ids=ids,
            num_prompt_tokens=context,
            num_computed_tokens=context - 1,
            block_tables=columns.pack_ids(range(slot * blocks, (slot + 1) * blocks)),
            sampling=SamplingParams(temperature=0, ignore_eos=True),
        )
        for slot in range(batch)
    )
    slots, ones = columns.pack_ids(range(batch)), columns.pack_ids([1] * batch)
    seconds: list[float] = []
    for step in range(steps + 1):
        began = time.perf_counter()
        runner.execute(StepPlan(1, step, slots, ones, started=() if step else started))
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > LONGEST_CELL_S and step >= 2:
            break
    runner.reset()
    return seconds[1:]


def _saved_bytes() -> int:
    """What this process' coded matrices take less than numbers of 16 bits."""
    found = (thing.weights for thing in gc.get_objects() if type(thing) is NativeMatrix)
    return sum(w.n * w.k * 2 - w.panels.numel() for w in found if w.coded and w.panels is not None)


def _reading_speed() -> float:
    """Bytes a second: the best of several sums over more than a cache holds."""
    data = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    best = math.inf
    for _ in range(7):
        began = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - began)
    return READ_BYTES / best


def report(growth: Growth) -> str:
    """A table: rows are batches, columns contexts."""
    contexts = list(dict.fromkeys(cell.context for cell in growth.cells))
    batches = list(dict.fromkeys(cell.batch for cell in growth.cells))
    found = {(cell.batch, cell.context): cell for cell in growth.cells}
    lines = [
        f"Weights {growth.weights_bytes / 1e6:,.0f} MB, KV {growth.token_bytes / 1024:.0f} KiB a token; "
        f"all threads read {growth.bytes_per_s / 1e9:.1f} GB/s.",
        "ms of a decode step, and the share of it that reading takes; –: its KV does not fit.",
        "",
        "| sequences | " + " | ".join(f"{context:,} tokens" for context in contexts) + " |",
        "|---|" + "---|" * len(contexts),
    ]
    for batch in batches:
        row = []
        for context in contexts:
            cell = found.get((batch, context))
            row.append(
                "–" if cell is None else f"{cell.seconds * 1e3:.1f} ({cell.read_s / cell.seconds:.0%})"
            )
        lines.append(f"| {batch} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def picture(growth: Growth, title: str) -> str:
    """An SVG: milliseconds per token over contexts, a line for each batch; dashed: reading alone."""
    lines = []
    for batch in dict.fromkeys(cell.batch for cell in growth.cells):
        cells = [cell for cell in growth.cells if cell.batch == batch]
        name = f"{batch} sequence{'s' * (batch > 1)}"
        lines.append(Line(name, [(cell.context, cell.seconds / batch * 1e3) for cell in cells]))
        read = [(cell.context, cell.read_s / batch * 1e3) for cell in cells]
        lines.append(Line("", read, dashed=True))
    return plot(title, "tokens of context", "ms per token", lines)
