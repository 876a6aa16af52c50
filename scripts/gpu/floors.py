"""How fast a step, a prompt or a whole workload can be at best: bytes that must be read, products that must
be made, whichever takes longer (Williams et al., "Roofline", 2009).

    step      max(W / BW, 2 · P · rows / FLOPS) of the layers + the same of the head + Σ contexts · KV / BW
    prompt    2 · P · T / FLOPS + attention's 2 · 2 · T² / 2 · heads · head_dim · layers / FLOPS + head
    workload  all prompts, then a step for every length of answer, each with the sequences that are left

with W bytes and P numbers of weights, rows sequences, KV bytes a token, T tokens. The embedding's gather,
norms, activations and all else is left out, so these are floors. Products of prompts and of many rows are as
fast as the device multiplies the type of the weights: bf16 for 16 and 4 bits, fp8 and int8 for theirs.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from .shapes import Shape

BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.53125}
"""Of a weight; int4: half a byte, and a float32 scale per 128."""
HEAD_OF = {"bf16": "bf16", "fp8": "fp8", "int8": "int8", "int4": "int8"}
"""How the output head is stored beside layers of each kind (`--quantize-head`)."""


class Ceilings(Struct, frozen=True):
    """What this device does at best, as measured in the same run."""

    bytes_per_s: float
    rates: Mapping[str, float]
    """FLOP/s of products of each type: bf16, and fp8 and int8 where the device has them."""

    def flops(self, weights: str) -> float:
        """Of products with such weights; as bf16 where the device has nothing faster."""
        return self.rates.get(weights, self.rates["bf16"])


def step_floor_s(
    shape: Shape, ceilings: Ceilings, *, rows: int, context_tokens: float, weights: str = "bf16"
) -> float:
    """Seconds of a decode step of `rows` sequences, whose contexts sum to `context_tokens`."""

    def product(numbers: int, stored: str) -> float:
        read = numbers * BYTES[stored] / ceilings.bytes_per_s
        return max(read, 2.0 * numbers * rows / ceilings.flops(stored))

    layers = product(shape.layer_weights, weights)
    head = product(shape.head_weights, HEAD_OF[weights])
    return layers + head + context_tokens * shape.kv_bytes() / ceilings.bytes_per_s


def prefill_floor_s(shape: Shape, ceilings: Ceilings, tokens: int, weights: str = "bf16") -> float:
    """Seconds of one prompt, of which only the last token has logits. Attention is bf16 in any case."""
    products = 2.0 * (shape.layer_weights * tokens + shape.head_weights)
    attention = 2.0 * tokens * tokens * shape.num_heads * shape.head_dim * shape.num_layers
    return products / ceilings.flops(weights) + attention / ceilings.rates["bf16"]


def workload_floor_s(
    shape: Shape, ceilings: Ceilings, lengths: Sequence[tuple[int, int]], weights: str = "bf16"
) -> float:
    """Seconds for (prompt tokens, answer tokens) of each request, all there at once, with memory for all."""
    seconds = sum(prefill_floor_s(shape, ceilings, prompt, weights) for prompt, _ in lengths)
    for step in range(1, max(answer for _, answer in lengths)):  # a prompt's own step gives the first token
        left = [prompt + step for prompt, answer in lengths if answer > step]
        seconds += step_floor_s(shape, ceilings, rows=len(left), context_tokens=sum(left), weights=weights)
    return seconds
