"""What rounding the bundled model's weights costs: its score on held-out prompts, served, and how far its
next-token distributions move from those of float32 (Kullback–Leibler divergence), in this process.
"""

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from frontend.chat_template import ChatTemplate
from frontend.tokenizer import Tokenizer
from protocol import columns
from protocol.config import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions, WorkerConfig
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan
from scripts.bundled_tasks import Sample, held_out_samples
from scripts.model_path import BUNDLED
from worker.runner import TorchRunner

from . import quality
from .stack import serving

SCHEMES: dict[str, dict[str, str]] = {
    "none": {},
    "none, bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "int4": {"quantization": "int4"},
    "nf4": {"quantization": "nf4"},
}
"""By name, options of the model that are not the defaults; the first is what the others are compared with."""
TEXTS_PER_TASK = 4
BLOCK_SIZE = 64
NUM_BLOCKS = 32
"""Room for one text."""

Floats = NDArray[np.float64]


class Cost(NamedTuple):
    scheme: str
    weights_bytes: int
    score: float
    """Mean over tasks of the share of answers that are right to the letter."""
    mean_kl: float
    """In nats per token."""
    p99_kl: float
    same_token: float
    """Share of positions whose likeliest token is that of float32."""


async def measure(per_task: int, serve_arguments: Sequence[str]) -> list[Cost]:
    texts = list(_texts(held_out_samples(TEXTS_PER_TASK)))
    reference: list[Floats] = []
    found = []
    for scheme, options in SCHEMES.items():
        weights_bytes, ours = _distributions(
            msgspec.convert({"model": str(BUNDLED), **options}, ModelOptions), texts
        )
        reference = reference or ours
        divergence = np.concatenate(
            [(np.exp(p) * (p - q)).sum(1) for p, q in zip(reference, ours, strict=True)]
        )
        same = np.concatenate([p.argmax(1) == q.argmax(1) for p, q in zip(reference, ours, strict=True)])
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with serving([*serve_arguments, *arguments]) as stack:
            scores = await quality.measure(f"http://{stack.host}:{stack.port}", per_task)
        found.append(
            Cost(
                scheme,
                weights_bytes,
                sum(scores.values()) / len(scores),
                float(divergence.mean()),
                float(np.quantile(divergence, 0.99)),
                float(same.mean()),
            )
        )
    return found


def report(costs: Sequence[Cost]) -> str:
    lines = [
        "| weights | MB | held-out score | points lost | KL, mean | KL, p99 | same likeliest token |",
        "|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        lines.append(
            f"| {cost.scheme} | {cost.weights_bytes / 1e6:.2f} | {cost.score:.1%} "
            f"| {(costs[0].score - cost.score) * 100:.1f} | {cost.mean_kl:.2g} | {cost.p99_kl:.2g} "
            f"| {cost.same_token:.2%} |"
        )
    return "\n".join(lines)


def _texts(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Ids of each conversation with its right answer."""
    tokenizer = Tokenizer(BUNDLED)
    template = ChatTemplate.load("", BUNDLED, tokenizer.config, tokenizer.special_tokens)
    assert template is not None
    for sample in samples:
        answer = {"role": "assistant", "content": sample.answer}
        text = template.render([*sample.messages, answer], add_generation_prompt=False)
        yield from tokenizer.encode_now([text], add_special_tokens=False)


def _distributions(options: ModelOptions, texts: Sequence[Sequence[int]]) -> tuple[int, list[Floats]]:
    """(bytes of weights, of each text float64[positions, vocabulary] of log-probabilities)"""
    with tempfile.TemporaryDirectory(prefix="tern-bench-") as folder:
        config = WorkerConfig(
            incarnation=1,
            rank=0,
            group_dir=folder,
            model=options,
            cache=CacheOptions(block_size=BLOCK_SIZE, num_kv_blocks=NUM_BLOCKS),
            scheduler=SchedulerOptions(max_num_seqs=1),
            parallel=ParallelOptions(),
        )
        runner = TorchRunner(config, lambda *_: None)
    return runner.facts.weights_bytes, [_of_one_text(runner, text) for text in texts]


def _of_one_text(runner: TorchRunner, text: Sequence[int]) -> Floats:
    vocab = runner.facts.vocab_size
    start = SequenceStart(
        slot=0,
        token_ids=columns.pack_ids(text),
        num_prompt_tokens=len(text),
        num_computed_tokens=0,
        block_tables=columns.pack_ids(range(-(-len(text) // BLOCK_SIZE))),
        sampling=SamplingParams(temperature=0, prompt_logprobs=vocab),
    )
    count, slot = columns.pack_ids([len(text)]), columns.pack_ids([0])
    result = runner.execute(StepPlan(1, 1, slot, count, started=(start,)))
    runner.reset()
    ((_, _, block),) = result.prompt_logprobs
    values: array[float] = columns.unpack_floats(block.top_values)
    ids = np.array(columns.unpack_ids(block.top_ids)).reshape(-1, vocab)
    table = np.empty(ids.shape)
    np.put_along_axis(table, ids, np.array(values, dtype=np.float64).reshape(ids.shape), 1)
    return table
