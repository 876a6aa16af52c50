"""The benchmark's whole decode step, small, against plain torch: the kernels fit together."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.gpu import decode
from scripts.gpu.floors import Shape
from tests.worker.kernels.triton.tolerance import close
from worker.kernels.triton import decode_attention, rope_kv

SHAPE = Shape("tiny", 2, 32, 48, 4, 2, 16, 50, head_norms=True)
ROWS, CONTEXT, STEPS = 2, 15, 2


def expected_logits(step: decode.Step, weights: dict[int, Tensor], caches: list[Tensor]) -> Tensor:
    """Of the inputs as they stand. Writes the caches."""
    inputs, shape = step.inputs, step.shape
    x = step.embedding[inputs.token_ids]
    place = iter(range(len(weights)))
    for layer, cache in zip(step.layers, caches, strict=True):
        kv = layer.kv._replace(cache=cache)
        y = F.rms_norm(x, (shape.hidden_size,), layer.input_norm, decode.EPS)
        qkv = F.linear(y, weights[next(place)]).view(ROWS, -1, shape.head_dim)
        queries = rope_kv.reference(
            qkv, inputs.positions, inputs.slots, step.table, kv, shape.num_heads, layer.head_norms
        )
        mixed = decode_attention.reference(
            queries,
            kv,
            inputs.block_tables,
            inputs.context_lens,
            decode_attention.Scores(shape.head_dim**-0.5),
        )
        x = x + F.linear(mixed, weights[next(place)])
        y = F.rms_norm(x, (shape.hidden_size,), layer.post_norm, decode.EPS)
        gate, up = F.linear(y, weights[next(place)]).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, weights[next(place)])
    return F.linear(F.rms_norm(x, (shape.hidden_size,), step.final_norm, decode.EPS), weights[next(place)])


def test_steps_follow_each_other_on_the_device(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """From the last place of a block into the next: the second step computes what the first one drew."""
    weights: dict[int, Tensor] = {}
    original, products = decode.matrix, list[Tensor]()

    def matrix(n: int, k: int, kind: str, dtype: torch.dtype, device: torch.device) -> decode.Multiply:
        state = torch.get_rng_state()
        weights[len(weights)] = torch.randn(n, k, dtype=dtype) * k**-0.5
        torch.set_rng_state(state)
        place, multiply = len(weights) - 1, original(n, k, kind, dtype, torch.device("cpu"))
        if device.type == "cuda":
            there = weights[place].to(device)
            multiply = lambda x, add: decode.matmul(x, there, add=add)  # noqa: E731

        def kept(x: Tensor, add: Tensor | None) -> Tensor:
            y = multiply(x, add)
            if n == SHAPE.vocab_size:
                products.append(y)
            return y

        return kept

    monkeypatch.setattr(decode, "matrix", matrix)
    step = decode.Step(SHAPE, "bf16", ROWS, 64, device, torch.float32)
    caches = [layer.kv.cache.clone() for layer in step.layers]
    everywhere = {place: weight.to(device) for place, weight in weights.items()}
    step.begin(ROWS, CONTEXT)
    for number in range(STEPS):
        assert step.inputs.positions.tolist() == [CONTEXT - 1 + number] * ROWS
        expected = expected_logits(step, everywhere, caches)
        step(ROWS)
        close(products[-1], expected)
        assert torch.equal(step.tokens, expected.argmax(-1))
        assert torch.equal(step.inputs.token_ids, step.tokens)
        for layer, cache in zip(step.layers, caches, strict=True):
            close(layer.kv.cache, cache)
