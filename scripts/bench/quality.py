"""Exact match of a served model on the held-out prompts of the bundled tasks, under greedy sampling."""

import asyncio
import json
import urllib.request
from collections import defaultdict

from scripts.bundled_tasks import Sample, held_out_samples

_AT_ONCE = 32


async def measure(base_url: str, per_task: int) -> dict[str, float]:
    """Share of answers that equal the right one to the letter, by task."""
    gate = asyncio.Semaphore(_AT_ONCE)
    right: dict[str, list[bool]] = defaultdict(list)

    async def ask(sample: Sample) -> None:
        async with gate:
            answer = await asyncio.to_thread(_complete, base_url, sample)
        right[sample.task].append(answer == sample.answer)

    await asyncio.gather(*(ask(sample) for sample in held_out_samples(per_task)))
    return {task: sum(hits) / len(hits) for task, hits in sorted(right.items())}


def _complete(base_url: str, sample: Sample) -> str:
    body = {"messages": sample.messages, "temperature": 0, "max_tokens": 256}
    request = urllib.request.Request(
        f"{base_url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        content: str = json.load(response)["choices"][0]["message"]["content"]
        return content


def report(scores: dict[str, float]) -> str:
    """A table, the mean last."""
    lines = ["| task | exact match |", "|---|---|"]
    lines += [f"| {task} | {score:.1%} |" for task, score in scores.items()]
    lines.append(f"| **mean of {len(scores)} tasks** | **{sum(scores.values()) / len(scores):.1%}** |")
    return "\n".join(lines)
