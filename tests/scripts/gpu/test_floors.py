"""Floors against numbers computed by hand for an H200 (4.3 TB/s, 790 TFLOP/s)."""

import pytest

from scripts.gpu.floors import SHAPES, Ceilings, decode_floor_s, prefill_floor_s

H200 = Ceilings(4.3e12, 790e12)


@pytest.mark.parametrize(
    ("name", "layers", "head", "kv_bytes"),
    [
        ("Qwen3-0.6B", 0.440e9, 0.156e9, 114_688),
        ("Llama-3.2-1B", 0.973e9, 0.263e9, 32_768),
        ("Qwen3-4B", 3.633e9, 0.389e9, 147_456),
        ("Llama-3.1-8B", 6.979e9, 0.525e9, 131_072),
    ],
)
def test_sizes_of_published_models(name: str, layers: float, head: float, kv_bytes: int) -> None:
    shape = SHAPES[name]
    assert shape.layer_weights == pytest.approx(layers, rel=2e-3)
    assert shape.head_weights == pytest.approx(head, rel=3e-3)
    assert shape.kv_bytes() == kv_bytes


@pytest.mark.parametrize(
    ("name", "weights", "batch", "ms"),
    [
        ("Llama-3.1-8B", "bf16", 1, 3.522),
        ("Llama-3.1-8B", "bf16", 256, 12.85),
        ("Llama-3.1-8B", "bf16", 32, 4.489),
        ("Qwen3-0.6B", "bf16", 1, 0.305),
        ("Qwen3-0.6B", "bf16", 256, 7.38),
    ],
)
def test_decode_floors(name: str, weights: str, batch: int, ms: float) -> None:
    found = decode_floor_s(SHAPES[name], H200, batch=batch, context=1024, weights=weights)
    assert found * 1e3 == pytest.approx(ms, rel=0.005)


def test_fewer_bits_lower_the_floor_until_products_decide() -> None:
    shape = SHAPES["Llama-3.1-8B"]
    alone = [
        decode_floor_s(shape, H200, batch=1, context=1, weights=weights)
        for weights in ("bf16", "fp8", "int4")
    ]
    assert alone == sorted(alone, reverse=True)
    crowd = {
        decode_floor_s(shape, H200, batch=512, context=1, weights=weights) for weights in ("fp8", "int4")
    }
    assert len(crowd) == 1


def test_prefill_floors() -> None:
    """55.5 thousand tokens/s at 1,024 and 49.1 at 8,192 tokens."""
    for tokens, rate in ((1024, 55.5e3), (8192, 49.1e3)):
        found = tokens / prefill_floor_s(SHAPES["Llama-3.1-8B"], H200, tokens)
        assert found == pytest.approx(rate, rel=0.02)
