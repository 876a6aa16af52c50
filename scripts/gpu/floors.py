"""How fast a decode step or a prompt can be at best: bytes that must be read, products that must be made.

    decode    t = max(W / BW, 2 · P · B / FLOPS) of the layers + the same of the head + B · context · KV / BW
    prompt    t = 2 · P · T / FLOPS + attention's 2 · 2 · T² / 2 · heads · head_dim · layers / FLOPS + head

with W bytes and P numbers of weights, B sequences, KV bytes a token. The embedding's gather and all else is
left out, so these are floors.
"""

from dataclasses import dataclass

BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.53125}
"""Of a weight; int4: half a byte, and a float32 scale per 128."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A published model's sizes."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    head_norms: bool = False

    @property
    def qkv_rows(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Numbers of all layers' matrices."""
        attention = self.qkv_rows + self.num_heads * self.head_dim
        return self.num_layers * self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    def kv_bytes(self, item_bytes: float = 2.0) -> float:
        """Of one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * item_bytes


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device does at best, as measured in the same run."""

    bytes_per_s: float
    flops: float
    """bf16"""


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151_936, head_norms=True),
        Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128_256),
        Shape("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151_936, head_norms=True),
        Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128_256),
    )
}


def decode_floor_s(
    shape: Shape, ceilings: Ceilings, *, batch: int, context: int, weights: str = "bf16", head: str = "bf16"
) -> float:
    """Seconds of one step. Eight-bit and four-bit weights are multiplied at the rate of bf16."""

    def product(numbers: int, item_bytes: float) -> float:
        read = numbers * item_bytes / ceilings.bytes_per_s
        return max(read, 2.0 * numbers * batch / ceilings.flops)

    kv = batch * context * shape.kv_bytes() / ceilings.bytes_per_s
    return product(shape.layer_weights, BYTES[weights]) + product(shape.head_weights, BYTES[head]) + kv


def prefill_floor_s(shape: Shape, ceilings: Ceilings, tokens: int) -> float:
    """Seconds of one prompt, of which only the last token has logits."""
    products = 2.0 * shape.layer_weights * tokens
    attention = 2.0 * tokens * tokens * shape.num_heads * shape.head_dim * shape.num_layers
    head = 2.0 * shape.head_weights
    return (products + attention + head) / ceilings.flops
