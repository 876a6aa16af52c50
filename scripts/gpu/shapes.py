"""The sizes of published models, and checkpoint folders of those sizes without weights.

A folder has what `--load-format dummy` needs: config.json, and a tokenizer with a token for each id, so that
every token that random weights draw has a text to be sent.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with grouped queries and a gated MLP, or a mixture of them in every layer."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Of an expert, if there are some."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    head_norms: bool = False
    """Qwen3's norms of queries and keys; else it is a Llama."""
    tied: bool = True
    """The output head is the embedding."""
    num_experts: int = 0
    top_k: int = 0
    """Experts of a token. A mixture is a Qwen3-MoE."""

    @property
    def qkv_rows(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Numbers of all layers' matrices that a token is multiplied by: with experts, those of its own."""
        return self._layers(self.top_k or 1)

    @property
    def stored_layer_weights(self) -> int:
        """Of all layers' matrices."""
        return self._layers(self.num_experts or 1)

    def _layers(self, networks: int) -> int:
        attention = self.qkv_rows + self.num_heads * self.head_dim
        each = attention + self.num_experts + networks * 3 * self.intermediate_size
        return self.num_layers * self.hidden_size * each

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    def kv_bytes(self, item_bytes: float = 2.0) -> float:
        """Of one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * item_bytes

    def config(self) -> dict[str, object]:
        """config.json"""
        family, model_type = ("Qwen3", "qwen3") if self.head_norms else ("Llama", "llama")
        experts: dict[str, object] = {}
        if self.num_experts:
            family, model_type = "Qwen3Moe", "qwen3_moe"
            experts = {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.top_k,
                "moe_intermediate_size": self.intermediate_size,
                "norm_topk_prob": True,
            }
        return {
            "architectures": [f"{family}ForCausalLM"],
            "model_type": model_type,
            **experts,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151_936, head_norms=True),
        Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128_256),
        Shape("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151_936, head_norms=True),
        Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128_256, tied=False),
    )
}
SPARSE = Shape(
    "Qwen3-30B-A3B-12-layers", 12, 2048, 768, 32, 4, 128, 151_936, True, tied=False, num_experts=128, top_k=8
)
"""A quarter of the model's layers: random weights of 14 GB, not of 57, are made within its time."""
TINY_SPARSE = Shape("tiny-sparse", 1, 64, 32, 4, 2, 32, 512, True, num_experts=6, top_k=2)
TINY = Shape("tiny", 2, 64, 128, 4, 2, 32, 512, head_norms=True)
"""These two for rehearsals on a CPU."""


def write(shape: Shape, folder: Path) -> Path:
    """`folder`/<name>, made unless it is there."""
    path = folder / shape.name
    if not path.exists():
        path.mkdir(parents=True)
        tokenizer(shape.vocab_size).save(str(path / "tokenizer.json"))
        (path / "config.json").write_bytes(msgspec.json.encode(shape.config()))
    return path


def tokenizer(size: int) -> Tokenizer:
    """Bytes, then words of letters, up to `size` tokens; text becomes bytes."""
    names = dict.fromkeys(itertools.islice(_names(), size))
    core = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def _names() -> Iterator[str]:
    yield from sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for length in itertools.count(2):
        yield from map("".join, itertools.product(letters, repeat=length))
