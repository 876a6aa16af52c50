"""What rounding the bundled model's weights, or its KV cache, costs: its score on held-out prompts, and how
far its next-token distributions move from those of float32 (Kullback–Leibler divergence).

Everything is read off one pass over each prompt with its right answer: greedy decoding gives the right answer
to the letter exactly if each of its tokens is the likeliest one after the right ones before it.
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import torch
from torch import Tensor

from frontend.chat_template import ChatTemplate
from frontend.tokenizer import Tokenizer
from protocol import columns
from protocol.config import WorkerConfig
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan
from scripts.bundled_tasks import Sample, held_out_samples
from scripts.model_path import BUNDLED
from worker.models.registry import Model
from worker.runner import TorchRunner

SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "int4": {"quantization": "int4"},
    "nf4": {"quantization": "nf4"},
    "int4, groups of 128": {"quantization": "int4", "quantization_group": 128},
    "int4, head as it is": {"quantization": "int4", "quantize_head": False},
    "float32, int8 KV": {"kv_cache_dtype": "int8"},
    "bfloat16, int8 KV": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    "float32, fp8 KV": {"kv_cache_dtype": "fp8", "cpu_kernels": "torch"},
    "int4, int8 KV": {"quantization": "int4", "kv_cache_dtype": "int8"},
}
"""By name, options that are not the defaults; the first is what the others are compared with."""
BLOCK_SIZE = 64
END_OF_TURN = 2
"""The bundled model's."""
NUM_BLOCKS = 32
"""Room for one text."""


class Text(NamedTuple):
    task: str
    token_ids: list[int]
    answer_start: int
    """Of the answer, in token_ids; it ends with the end of the turn."""


class Cost(NamedTuple):
    scheme: str
    weights_bytes: int
    score: float
    """Mean over tasks of the share of answers that are right to the letter."""
    mean_kl: float
    """In nats per token of an answer."""
    p99_kl: float
    same_token: float
    """Share of these tokens whose likeliest one is that of float32."""


def measure(per_task: int) -> list[Cost]:
    texts = _texts(held_out_samples(per_task))
    reference: list[Tensor] = []
    found = []
    for scheme, options in SCHEMES.items():
        weights_bytes, ours = _distributions(options, texts)
        reference = reference or ours
        p, q = torch.cat(reference), torch.cat(ours)
        divergence = (p.exp() * (p - q)).sum(1)
        found.append(
            Cost(
                scheme,
                weights_bytes,
                _score(texts, ours),
                float(divergence.mean()),
                float(divergence.quantile(0.99)),
                float((p.argmax(1) == q.argmax(1)).double().mean()),
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


def _score(texts: Sequence[Text], distributions: Sequence[Tensor]) -> float:
    right: dict[str, list[bool]] = defaultdict(list)
    for text, found in zip(texts, distributions, strict=True):
        right[text.task].append(found.argmax(1).tolist() == text.token_ids[text.answer_start :])
    return sum(sum(hits) / len(hits) for hits in right.values()) / len(right)


def _texts(samples: Sequence[Sample]) -> list[Text]:
    """Each conversation with its right answer."""
    tokenizer = Tokenizer(BUNDLED)
    template = ChatTemplate.load("", BUNDLED, tokenizer.config, tokenizer.special_tokens)
    assert template is not None
    found = []
    for sample in samples:
        prompt = template.render(sample.messages)
        ids, answer = tokenizer.encode_now([prompt, sample.answer], add_special_tokens=False)
        found.append(Text(sample.task, [*ids, *answer, END_OF_TURN], len(ids)))
    return found


class Recorder:
    """A model that keeps the logits that it gives."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.given: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *arguments: Any) -> Tensor:
        return self.model(*arguments)

    def logits(self, x: Tensor) -> Tensor:
        logits = self.model.logits(x)
        self.given.append(logits.double().log_softmax(-1))
        return logits


def _distributions(options: Mapping[str, Any], texts: Sequence[Text]) -> tuple[int, list[Tensor]]:
    """(bytes of weights, of each text float64[tokens of the answer, vocabulary] of log-probabilities)"""
    of_model = {name: value for name, value in options.items() if name in ModelOptions.__struct_fields__}
    with tempfile.TemporaryDirectory(prefix="tern-bench-") as folder:
        config = WorkerConfig(
            incarnation=1,
            rank=0,
            group_dir=folder,
            model=msgspec.convert({"model": str(BUNDLED), **of_model}, ModelOptions),
            cache=CacheOptions(
                block_size=BLOCK_SIZE,
                num_kv_blocks=NUM_BLOCKS,
                kv_cache_dtype=options.get("kv_cache_dtype", "auto"),
            ),
            scheduler=SchedulerOptions(max_num_seqs=1),
            parallel=ParallelOptions(cpu_kernels=options.get("cpu_kernels", "auto")),
        )
        runner = TorchRunner(config, lambda *_: None)
    recorder = Recorder(runner.served.model)
    runner.served.model = cast(Model, recorder)
    found = []
    for text in texts:
        recorder.given.clear()
        _read(runner, text.token_ids)
        found.append(recorder.given[0][text.answer_start - 1 :])
    return runner.facts.weights_bytes, found


def _read(runner: TorchRunner, token_ids: Sequence[int]) -> None:
    start = SequenceStart(
        slot=0,
        token_ids=columns.pack_ids(token_ids),
        num_prompt_tokens=len(token_ids),
        num_computed_tokens=0,
        block_tables=columns.pack_ids(range(-(-len(token_ids) // BLOCK_SIZE))),
        sampling=SamplingParams(temperature=0, prompt_logprobs=1),
    )
    count, slot = columns.pack_ids([len(token_ids)]), columns.pack_ids([0])
    runner.execute(StepPlan(1, 1, slot, count, started=(start,)))
    runner.reset()
