"""Tiny random Llama checkpoints written by transformers, and what transformers says about them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 96
MAX_LEN = 256


def write_checkpoint(folder: Path, *, shard: str = "1GB", **changes: Any) -> Path:
    """Saved as transformers saves. The weights are wide enough for greedy text to be well decided."""
    torch.manual_seed(7)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LEN,
        "initializer_range": 0.15,
        "dtype": "float32",
        "eos_token_id": None,
        "bos_token_id": None,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases are born as ones and zeros, which hide mistakes
                parameter.add_(
                    0.3 * torch.randn_like(parameter) if "norm" in name else torch.randn_like(parameter)
                )
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


class Reference:
    """transformers on one checkpoint."""

    def __init__(self, folder: Path) -> None:
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logprobs(self, token_ids: Sequence[int]) -> Tensor:
        """[tokens, vocab]: row i is about the token at i + 1."""
        logits: Tensor = self.model(torch.tensor([token_ids])).logits[0]
        return logits.log_softmax(-1)

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens, by transformers' own generate."""
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        new: list[int] = out[0, len(prompt) :].tolist()
        return new
