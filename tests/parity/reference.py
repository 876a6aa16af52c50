"""Tiny random checkpoints written by transformers, what transformers says about them, and how to compare."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from protocol.sampling import SamplingParams
from tests.worker.driver import Driver

VOCAB_SIZE = 96
MAX_LEN = 256
TOLERANCE = 1e-4
"""Of logits in float32: some ten times what the order of sums changes in numbers of this size. A wrong
mask, rotation, scale or head shows up as 1e-2 and more."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "initializer_range": 0.15,
    "dtype": "float32",
    "pad_token_id": None,
    "eos_token_id": None,
    "bos_token_id": None,
}


def write_checkpoint(folder: Path, model_type: str = "llama", *, shard: str = "1GB", **changes: Any) -> Path:
    """Saved as transformers saves. The weights are wide enough for greedy text to be well decided."""
    torch.manual_seed(7)
    create: Any = AutoModelForCausalLM.from_config
    model = create(AutoConfig.for_model(model_type, **{**SHAPE, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases are born as ones and zeros, which hide mistakes
                parameter.add_(
                    0.3 * torch.randn_like(parameter) if "norm" in name else torch.randn_like(parameter)
                )
            elif not parameter.any():  # a router may be born as zeros
                parameter.normal_(std=0.5)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def tokens(count: int, seed: int = 0) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(VOCAB_SIZE) for _ in range(count)]


class Reference:
    """transformers on one checkpoint."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        load: Any = AutoModelForCausalLM.from_pretrained
        # Not SDPA, which some releases let a model choose that caps its scores: SDPA does not.
        self.model = load(folder, dtype=dtype, attn_implementation="eager").eval()

    @torch.no_grad()
    def logprobs(self, token_ids: Sequence[int]) -> Tensor:
        """[tokens, vocab]: row i is about the token at i + 1."""
        logits: Tensor = self.model(torch.tensor([token_ids])).logits[0]
        return logits.float().log_softmax(-1)

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens, by transformers' own generate."""
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        new: list[int] = out[0, len(prompt) :].tolist()
        return new

    def is_greedy(self, prompt: Sequence[int], outputs: Sequence[int], count: int) -> bool:
        """Whether these are the tokens of `greedy`: each the likeliest behind those before it."""
        rows = self.logprobs([*prompt, *outputs])[len(prompt) - 1 : -1]
        return len(outputs) == count and rows.argmax(-1).tolist() == list(outputs)


def assert_equal(driver: Driver, reference: Reference, num_outputs: int) -> None:
    """All log-probabilities of a prompt in chunks and of its greedy continuation."""
    prompt = tokens(41)
    everything = SamplingParams(temperature=0, logprobs=VOCAB_SIZE, prompt_logprobs=VOCAB_SIZE)
    seq = driver.add(prompt, everything)
    driver.run([seq], num_outputs, chunk=7)
    assert seq.outputs == reference.greedy(prompt, num_outputs)
    expected = reference.logprobs(seq.token_ids)
    assert sorted(seq.prompt_logprobs) == list(range(1, len(prompt)))
    ours = [seq.prompt_logprobs[i] for i in range(1, len(prompt))] + seq.logprobs
    table = torch.tensor([[row[token] for token in range(VOCAB_SIZE)] for row in ours])
    torch.testing.assert_close(table, expected[: len(table)], atol=TOLERANCE, rtol=0)
