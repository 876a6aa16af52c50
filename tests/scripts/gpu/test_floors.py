"""Floors against numbers computed by hand for an H200 (4.3 TB/s, 790 TFLOP/s bf16, twice that fp8)."""

import pytest

from scripts.gpu.floors import Ceilings, prefill_floor_s, step_floor_s, workload_floor_s
from scripts.gpu.served import nano_vllm_workload
from scripts.gpu.shapes import SHAPES, Shape

H200 = Ceilings(4.3e12, {"bf16": 790e12, "fp8": 1580e12})


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
    ("name", "weights", "rows", "ms"),
    [
        ("Llama-3.1-8B", "bf16", 1, 3.522),
        ("Llama-3.1-8B", "bf16", 256, 12.85),
        ("Llama-3.1-8B", "bf16", 32, 4.489),
        ("Qwen3-0.6B", "bf16", 1, 0.305),
        ("Qwen3-0.6B", "bf16", 256, 7.38),
        # (6.979 + 0.525) GB of one byte + 0.134 GB of KV
        ("Llama-3.1-8B", "fp8", 1, (6.979 + 0.525 + 0.134) / 4.3),
        # layers 2 · 6.979e9 · 256 and head 2 · 0.525e9 · 256 at 1,580 TFLOP/s, 34.36 GB of KV
        ("Llama-3.1-8B", "fp8", 256, (2 * 6979 * 0.256 + 2 * 525 * 0.256) / 1580 + 34.36 / 4.3),
        # 17/32 bytes of each number of the layers, a byte of the head's
        ("Llama-3.1-8B", "int4", 1, (6.979 * 17 / 32 + 0.525 + 0.134) / 4.3),
    ],
)
def test_steps(name: str, weights: str, rows: int, ms: float) -> None:
    shape = SHAPES[name]
    found = step_floor_s(shape, H200, rows=rows, context_tokens=rows * 1024, weights=weights)
    assert found * 1e3 == pytest.approx(ms, rel=0.005)


def test_what_the_device_has_no_faster_products_for_is_multiplied_as_bf16() -> None:
    assert H200.flops("fp8") == 1580e12
    assert H200.flops("int8") == H200.flops("int4") == 790e12


def test_prompts() -> None:
    """55.5 thousand tokens/s at 1,024 and 49.1 at 8,192 tokens; only products, not attention, gain by fp8."""
    shape = SHAPES["Llama-3.1-8B"]
    for tokens, rate in ((1024, 55.5e3), (8192, 49.1e3)):
        assert tokens / prefill_floor_s(shape, H200, tokens) == pytest.approx(rate, rel=0.02)
    assert 8192 / prefill_floor_s(shape, H200, 8192, "fp8") == pytest.approx(87e3, rel=0.02)


def test_a_workload_is_its_prompts_and_its_steps() -> None:
    shape = Shape("small", 1, 8, 8, 1, 1, 8, 16)
    alone = workload_floor_s(shape, H200, [(4, 1)])
    assert alone == pytest.approx(prefill_floor_s(shape, H200, 4))
    both = workload_floor_s(shape, H200, [(4, 3), (6, 2)])
    steps = [step_floor_s(shape, H200, rows=2, context_tokens=5 + 7)]
    steps.append(step_floor_s(shape, H200, rows=1, context_tokens=6))
    assert both == pytest.approx(alone + prefill_floor_s(shape, H200, 6) + sum(steps))


@pytest.mark.parametrize(("name", "rate"), [("Qwen3-0.6B", 36.3e3), ("Llama-3.1-8B", 13.3e3)])
def test_nano_vllms_benchmark(name: str, rate: float) -> None:
    workload = nano_vllm_workload()
    prompts, answers = (
        sum(len(request.prompt) for request in workload),
        sum(request.num_tokens for request in workload),
    )
    assert (len(workload), prompts, answers) == (256, 142_827, 133_966)
    lengths = [(len(request.prompt), request.num_tokens) for request in workload]
    assert answers / workload_floor_s(SHAPES[name], H200, lengths) == pytest.approx(rate, rel=0.01)
