"""`tern bench peers`: tokens per second of ours and theirs on random weights of one published shape.

For each kind of weights all engines are loaded, and take turns; who is not measured is stopped. Ours is
measured over HTTP with the load generator beside it; theirs are called inside their own process.
"""

import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.load import completion_request, together
from scripts.bench.stack import Stack, serving

from .drivers.random_model import VOCABULARY
from .environments import COLUMNS, Column, python_of, versions
from .peer import Peer, peer

FIRST_ORDINARY_ID = 300


@dataclass(frozen=True)
class Load:
    """So many prompts at once of so many tokens, each answered with so many."""

    title: str
    prompts: int
    prompt_tokens: int
    tokens: int
    counts_prompts: bool = False
    """tok/s are of the prompt instead of the answer."""

    def rate(self, seconds: float) -> float:
        """tok/s"""
        return self.prompts * (self.prompt_tokens if self.counts_prompts else self.tokens) / seconds


LOADS = (
    Load("single stream (128 → 128)", 1, 128, 128),
    Load("16 × (128 → 64), prefill included", 16, 128, 64),
    Load("prefill of 1,024", 1, 1024, 1, counts_prompts=True),
)
Rates = dict[tuple[str, str], list[float]]
"""(engine's title, load's title) → tok/s of each repetition"""


@dataclass
class Outcome:
    rates: dict[str, Rates] = field(default_factory=dict)
    """By kind of weights."""
    versions: dict[str, str] = field(default_factory=dict)
    """By environment."""


async def measure(
    folder: Path,
    kinds: Sequence[str],
    only: Sequence[str],
    repetitions: int,
    threads: int,
    arguments: list[str],
    say: Callable[[str], None],
) -> Outcome:
    """`folder` keeps environments and models for the next time. `only`: environments; empty means all.
    `say` is told the table of each kind when it is there."""
    model = _model(folder)
    columns = [column for column in COLUMNS if not only or column.environment in only]
    outcome = Outcome()
    for kind in kinds:
        present = [column for column in columns if kind in column.kinds]
        outcome.rates[kind] = await _kind(kind, present, model, folder, repetitions, threads, arguments)
        say(table(kind, outcome.rates[kind]))
    for name in {column.environment for column in columns}:
        outcome.versions[name] = versions(python_of(name, folder))
    return outcome


def _model(folder: Path) -> Path:
    """Made if it is not there."""
    model = folder / "qwen3-0.6b-random"
    if not model.exists():
        command = [sys.executable, "-m", "scripts.bench.peers.drivers.random_model", str(model)]
        subprocess.run(command, check=True)
    return model


async def _kind(
    kind: str,
    columns: Sequence[Column],
    model: Path,
    folder: Path,
    repetitions: int,
    threads: int,
    arguments: list[str],
) -> Rates:
    rates: Rates = {}
    quantization = [] if kind == "bf16" else ["--quantization", kind]
    with ExitStack() as opened:
        logs = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tern-peers-")))
        peers = [
            (one, opened.enter_context(_peer(one, kind, model, folder, threads, logs))) for one in columns
        ]
        stack = opened.enter_context(serving(["--model", str(model), *quantization, *arguments]))
        draw = random.Random(0)
        for repetition in range(-1, repetitions):  # the first warms everyone up, and is not counted
            for load in LOADS:
                prompts = _prompts(draw, load)
                found = {"Tern": await _ours(stack, load, prompts)}
                for column, process in peers:
                    found[column.title] = load.rate(process.seconds(column.method, prompts, load.tokens))
                for title, rate in found.items() if repetition >= 0 else ():
                    rates.setdefault((title, load.title), []).append(rate)
    return rates


@contextmanager
def _peer(column: Column, kind: str, model: Path, folder: Path, threads: int, logs: Path) -> Iterator[Peer]:
    kinds = [kind] if len(column.kinds) > 1 else []
    python = python_of(column.environment, folder)
    log = logs / f"{column.title.replace(' ', '-')}.log"
    with peer(python, column.driver, [str(model), str(threads), *kinds], log) as process:
        yield process


async def _ours(stack: Stack, load: Load, prompts: list[list[int]]) -> float:
    requests = [completion_request(prompt, load.tokens) for prompt in prompts]
    streams, seconds = await together(stack.host, stack.port, requests)
    if (total := sum(stream.num_tokens for stream in streams)) != len(prompts) * load.tokens:
        raise ValueError(f"asked for {len(prompts)} answers of {load.tokens} tokens, got {total} in all")
    return load.rate(seconds)


def _prompts(draw: random.Random, load: Load) -> list[list[int]]:
    """Fresh each time, so that no cache helps."""
    return [
        [draw.randrange(FIRST_ORDINARY_ID, VOCABULARY) for _ in range(load.prompt_tokens)]
        for _ in range(load.prompts)
    ]


def table(kind: str, rates: Rates) -> str:
    """Medians (least – most), and how far ours is ahead of the best."""
    titles = list(dict.fromkeys(title for title, _ in rates))
    lines = [
        f"| {kind}, tok/s | " + " | ".join(load.title for load in LOADS) + " |",
        "|---|" + "---|" * len(LOADS),
    ]
    for title in titles:
        lines.append(f"| {title} | " + " | ".join(_cell(rates[title, load.title]) for load in LOADS) + " |")
    others = [title for title in titles if title != "Tern"]
    if others:
        ahead = []
        for load in LOADS:
            best = max(statistics.median(rates[title, load.title]) for title in others)
            ahead.append(f"{statistics.median(rates['Tern', load.title]) / best:.2f}×")
        lines.append("| Tern, over the best of the others | " + " | ".join(ahead) + " |")
    return "\n".join([*lines, ""])


def report(outcome: Outcome) -> str:
    """Which versions they were."""
    return "\n".join(f"{name}: {text}" for name, text in sorted(outcome.versions.items()))


def _cell(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.1f} ({min(rates):,.1f} – {max(rates):,.1f})"
