"""What structured output costs: tokens per second of answers to a schema, beside free ones of the same model.

The same prompts in turn: free answers of a fixed length, answers to a schema that are free to choose their
whitespace, and answers to one without whitespace. A token is a token, sampled or forced by the grammar.
"""

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.model_path import BUNDLED

from .load import completion_request, together
from .stack import Stack, serving

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 5, "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "orders": {
            "type": "array",
            "minItems": 1000,
            "items": {
                "type": "object",
                "properties": {
                    "item": {"type": "string", "minLength": 3, "maxLength": 20},
                    "count": {"type": "integer", "minimum": 1, "maximum": 99},
                    "size": {"enum": ["small", "medium", "large"]},
                },
                "required": ["item", "count", "size"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["name", "age", "orders"],
    "additionalProperties": False,
}
"""Longer than any answer, so that all run to max_tokens."""
BOUND = {"structured_outputs": {"json": SCHEMA}, "ignore_eos": False}
TIGHT = {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}, "ignore_eos": False}
TEXT = {"structured_outputs": {"regex": "([A-Za-z ]{1,80}[.] )+"}, "ignore_eos": False}
KINDS: dict[str, list[dict[str, Any]]] = {
    "free": [{}],
    "schema": [BOUND],
    "schema without whitespace": [TIGHT],
    "regex that forces nothing": [TEXT],
    "half free, half schema": [{}, BOUND],
}


@dataclass
class Figure:
    """Tokens per second, one figure per repetition."""

    tokens_s: list[float] = field(default_factory=list)


async def measure(streams: int, num_tokens: int, repetitions: int, arguments: list[str]) -> dict[str, Figure]:
    """The kinds in turn, so that each meets the same machine."""
    draw = random.Random(0)
    figures = {kind: Figure() for kind in KINDS}
    with serving(["--model", str(BUNDLED), *arguments]) as stack:
        for repetition in range(-1, repetitions):  # the first is a warm-up, and is not counted
            prompts = [[draw.randrange(300, 2048) for _ in range(64)] for _ in range(streams)]
            for kind, figure in figures.items():
                rate = await _rate(stack, kind, prompts, num_tokens)
                if repetition >= 0:
                    figure.tokens_s.append(rate)
    return figures


async def _rate(stack: Stack, kind: str, prompts: Sequence[list[int]], num_tokens: int) -> float:
    extras = itertools.cycle(KINDS[kind])
    requests = [
        completion_request(prompt, num_tokens, temperature=1.0, seed=place, **next(extras))
        for place, prompt in enumerate(prompts)
    ]
    streams, seconds = await together(stack.host, stack.port, requests)
    total = sum(stream.num_tokens for stream in streams)
    assert total == len(prompts) * num_tokens
    return total / seconds


def report(figures: dict[str, Figure]) -> str:
    """Medians (least – most); shares are medians of the ratios within a repetition."""
    free = figures["free"].tokens_s
    lines = ["| answers | tokens per second | share of free |", "|---|---|---|"]
    for kind, figure in figures.items():
        rates = figure.tokens_s
        share = statistics.median(rate / base for rate, base in zip(rates, free, strict=True))
        cell = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} – {max(rates):,.0f})"
        lines.append(f"| {kind} | {cell} | {share:.0%} |")
    return "\n".join(lines)
