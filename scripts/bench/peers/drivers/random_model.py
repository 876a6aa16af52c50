"""Writes a checkpoint of random bfloat16 weights at the shape of Qwen3-0.6B, with a vocabulary of 32,768."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

VOCABULARY = 32_768
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
}
SPECIAL = "<|endoftext|>"


def main(folder: str) -> None:
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPE, bos_token_id=0, eos_token_id=0)
    unfinished = Path(folder).with_suffix(".unfinished")
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(unfinished)
    _tokenizer(transformers).save_pretrained(unfinished)
    unfinished.rename(folder)


def _tokenizer(transformers: Any) -> Any:
    """Bytes, and enough further tokens; only what wants a tokenizer to start ever sees it."""
    tokenizers: Any = import_module("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [SPECIAL, *letters]
    names += [f"{a}{b}{c}" for a in letters[:33] for b in letters[:33] for c in letters[:33]]
    vocabulary = {name: index for index, name in enumerate(names[:VOCABULARY])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL, bos_token=SPECIAL)


if __name__ == "__main__":
    main(*sys.argv[1:])
