"""Which kernels models launch: every wrapper, called as a model of each kind calls it, without memory.

Llama-3.1-8B, Qwen3-4B/8B  32 heads, 8 KV heads of 128        Gemma 3 4B  8 heads, 4 KV heads of 256
Llama-3.2-1B               32 heads, 8 KV heads of  64        Phi-3 mini  32 heads, 32 KV heads of 96
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.paged_kv import PagedKV
from worker.kernels.triton import (
    activation,
    decode_attention,
    experts,
    logprobs,
    lora,
    norm,
    prefill_attention,
    rope_kv,
    routing,
    sampling,
    step_rows,
)
from worker.kernels.triton.decode_attention import DecodePlan, Scores
from worker.kernels.triton.gemv import RowNorm, gemv
from worker.kernels.triton.int4_gemv import int4_gemv
from worker.kernels.triton.int4_matmul import int4_matmul
from worker.kernels.triton.matmul import matmul
from worker.kernels.triton.quantize_rows import quantize_rows

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FP8, INT8 = torch.float8_e4m3fn, torch.int8
ROWS = 64
"""Sequences of a decode step."""
PLAIN = Scores(0.1)


class Variant(NamedTuple):
    label: str
    call: Callable[[], object]
    least_capability: int = 80


class Heads(NamedTuple):
    num_heads: int
    num_kv_heads: int
    dim: int
    dtype: torch.dtype
    stored: torch.dtype | None = None
    """Type of a quantized cache."""

    def __str__(self) -> str:
        cache = f", {short(self.stored)} cache" if self.stored else ""
        return f"{short(self.dtype)}, {self.num_heads}/{self.num_kv_heads} heads of {self.dim}{cache}"


HEADS = [
    Heads(32, 8, 128, BF16),
    Heads(32, 8, 128, FP16),
    Heads(32, 8, 64, BF16),
    Heads(32, 32, 96, BF16),
    Heads(8, 4, 256, BF16),
    Heads(32, 8, 128, BF16, FP8),
    Heads(32, 8, 128, BF16, INT8),
    Heads(32, 8, 128, FP32),
]


def short(dtype: torch.dtype | None) -> str:
    names = {BF16: "bf16", FP16: "fp16", FP32: "fp32", FP8: "fp8", INT8: "int8"}
    return "" if dtype is None else names[dtype]


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def variants() -> Iterator[Variant]:
    """All of them."""
    yield from _around_attention()
    yield from _products()
    yield from _experts_and_adapters()
    yield from _sampling()
    for heads in HEADS:
        least = 89 if heads.stored is FP8 else 80
        for wrapper in (_rope_kv, _decode, _prefill):
            yield Variant(f"{heads}", partial(wrapper, heads), least)
    for wrapper in (_rope_kv, _decode):
        yield Variant(f"{HEADS[0]}, overlapping", partial(wrapper, HEADS[0], pdl=True), 90)
    gemma2, gpt_oss = Heads(16, 8, 256, BF16), Heads(64, 8, 64, BF16)
    for attend in (_decode, _prefill):
        yield Variant(f"{gemma2}, soft cap", partial(attend, gemma2, Scores(0.1, soft_cap=50.0)))
        yield Variant(f"{gpt_oss}, sinks", partial(attend, gpt_oss, Scores(0.1, window=128), empty(64)))


def _around_attention() -> Iterator[Variant]:
    for dtype in (BF16, FP16):
        x, gates = empty(ROWS, 4096, dtype=dtype), empty(ROWS, 2 * 14336, dtype=dtype)
        weight = empty(4096, dtype=dtype)
        name = short(dtype)
        yield Variant(f"{name}, RMSNorm", partial(norm.norm, x, weight, 1e-6))
        yield Variant(f"{name}, RMSNorm + residual", partial(norm.norm, x, weight, 1e-6, add=x))
        yield Variant(f"{name}, LayerNorm", partial(norm.norm, x, weight, 1e-6, bias=weight))
        yield Variant(f"{name}, SwiGLU", partial(activation.activate, gates))
        yield Variant(f"{name}, GeGLU", partial(activation.activate, gates, gelu=True))


def _products() -> Iterator[Variant]:
    """Llama-3.1-8B's output projection: one row (K in parts), a small batch, and a prompt."""
    n, k = 4096, 4096
    per_row, blocks = empty(n, dtype=FP32), empty(n // 128, k // 128, dtype=FP32)
    for m in (1, 64, 2048):
        x, bias = empty(m, k), empty(n)
        x_scales = empty(m, 1, dtype=FP32)
        w8, wf8 = empty(n, k, dtype=INT8), empty(n, k, dtype=FP8)
        x8, xf8 = empty(m, k, dtype=INT8), empty(m, k, dtype=FP8)
        yield Variant(f"bf16, {m} rows", partial(matmul, x, empty(n, k), bias=bias))
        if m == 1:
            yield Variant("bf16", partial(gemv, x, empty(n, k), bias=bias))
            yield Variant("W8A16 int8", partial(gemv, x, w8, w_scales=per_row))
            yield Variant("W8A16 fp8", partial(gemv, x, wf8, w_scales=per_row), 89)
            after = partial(gemv, norm=RowNorm(empty(k), 1e-6))
            yield Variant("W8A16 fp8 blocks", partial(gemv, x, wf8, w_scales=blocks), 89)
            yield Variant("bf16, overlapping", partial(gemv, x, empty(n, k), pdl=True), 90)
            yield Variant("bf16, RMSNorm before it", partial(after, x, empty(n, k)))
            yield Variant("bf16, RMSNorm and SwiGLU", partial(after, x, empty(2 * n, k), gated=True))
            two = empty(2 * n, k, dtype=INT8), empty(2 * n, dtype=FP32)
            gated = partial(after, x, two[0], w_scales=two[1], gated=True)
            packed = empty(n, k // 2, dtype=torch.uint8)
            for group, there in ((128, False), (128, True), (32, False)):
                groups = empty(n, k // group, dtype=FP32)
                one = partial(int4_gemv, x, packed, groups, groups if there else None, group)
                label = f"W4A16 groups of {group}{' with zeros' * there}"
                if group == 32:
                    yield Variant(f"{label}, overlapping", partial(one, pdl=True), 90)
                yield Variant(f"{label}, RMSNorm before it", partial(one, norm=RowNorm(empty(k), 1e-6)))
            yield Variant("W8A16 int8, RMSNorm and SwiGLU", gated)
        fp16, fp32 = (empty(m, k, dtype=dtype) for dtype in (FP16, FP32))
        yield Variant(f"fp16, {m} rows", partial(matmul, fp16, empty(n, k, dtype=FP16)))
        yield Variant(f"fp32, {m} rows", partial(matmul, fp32, empty(n, k, dtype=FP32)))
        yield Variant(f"W8A16 int8, {m} rows", partial(matmul, x, w8, w_scales=per_row))
        yield Variant(f"W8A16 fp8, {m} rows", partial(matmul, x, wf8, w_scales=per_row), 89)
        yield Variant(f"W8A16 fp8 blocks, {m} rows", partial(matmul, x, wf8, w_scales=blocks), 89)
        eight = partial(matmul, x_scales=x_scales, w_scales=per_row, out_dtype=BF16)
        yield Variant(f"W8A8, {m} rows", partial(eight, x8, w8))
        yield Variant(f"FP8, {m} rows", partial(eight, xf8, wf8), 89)
        x_blocks = empty(m, k // 128, dtype=FP32)
        in_blocks = partial(matmul, x_scales=x_blocks, w_scales=blocks, out_dtype=BF16)
        yield Variant(f"FP8 blocks, {m} rows", partial(in_blocks, xf8, wf8), 89)
        for group, zeros in ((128, False), (128, True), (32, False)):
            scales = empty(n, k // group, dtype=FP32)
            packed = empty(n, k // 2, dtype=torch.uint8)
            call = partial(int4_matmul, x, packed, scales, scales if zeros else None, group)
            yield Variant(f"W4A16 groups of {group}{' with zeros' * zeros}, {m} rows", call)
    yield from _some_rows(256, n, k)
    yield Variant("int8", partial(quantize_rows, empty(ROWS, k), INT8))
    yield Variant("fp8", partial(quantize_rows, empty(ROWS, k), FP8), 89)
    yield Variant("fp8, groups of 128", partial(quantize_rows, empty(ROWS, k), FP8, 128), 89)


def _some_rows(m: int, n: int, k: int) -> Iterator[Variant]:
    """Too many for the tiles of few, too few to give every multiprocessor one: K in parts again."""
    by_row = empty(m, 1, dtype=FP32), empty(n, dtype=FP32)
    blocks = empty(m, k // 128, dtype=FP32), empty(n // 128, k // 128, dtype=FP32)
    for name, dtype, scales in (("W8A8", INT8, by_row), ("FP8", FP8, by_row), ("FP8 blocks", FP8, blocks)):
        x, weight = empty(m, k, dtype=dtype), empty(n, k, dtype=dtype)
        call = partial(matmul, x, weight, x_scales=scales[0], w_scales=scales[1], out_dtype=BF16)
        yield Variant(f"{name}, {m} rows", call, 89 if dtype is FP8 else 80)
    packed, groups = empty(n, k // 2, dtype=torch.uint8), empty(n, k // 128, dtype=FP32)
    yield Variant(
        f"W4A16 groups of 128, {m} rows", partial(int4_matmul, empty(m, k), packed, groups, None, 128)
    )


def _experts_and_adapters() -> Iterator[Variant]:
    """Qwen3-30B-A3B: 128 experts, 8 of them for each token. Adapters of rank 16 and 64."""
    count, top_k, size, inner = 128, 8, 2048, 768
    yield Variant("128 experts", partial(routing.pick, empty(1, count, dtype=FP32), top_k, renormalize=True))
    for tokens in (1, 512):
        x, chosen = empty(tokens, size), empty(tokens, top_k, dtype=torch.int32)
        order = routing.Sorted(chosen.flatten(), empty(count + 1, dtype=torch.int32))
        yield Variant(f"{tokens} tokens", partial(routing.sort, chosen, count))
        for label, matrix, least in _expert_weights(count, 2 * inner, size):
            call = partial(experts.expert_matmul, x, matrix, order, top_k)
            yield Variant(f"{label}, {tokens} tokens", call, least)
    one, chosen = empty(1, size), empty(1, top_k, dtype=torch.int32)
    norm = RowNorm(empty(size), 1e-6)
    for label, matrix, least in _expert_weights(count, 2 * inner, size):
        call = partial(gemv, one, matrix.stored, w_scales=matrix.scales, norm=norm, gated=True, chosen=chosen)
        if matrix.group and matrix.scales is not None:
            four = partial(int4_gemv, one, matrix.stored, matrix.scales, matrix.zeros, matrix.group)
            call = partial(four, norm=norm, gated=True, chosen=chosen)
        yield Variant(f"experts, {label}, RMSNorm and SwiGLU", call, least)
    for label, matrix, least in _expert_weights(count, size, inner):
        if not matrix.group:
            down = partial(gemv, empty(top_k, inner), matrix.stored, w_scales=matrix.scales, chosen=chosen)
            yield Variant(f"experts, {label}, of each", partial(down, out_dtype=FP32), least)
    mixed, weights = empty(ROWS * top_k, size), empty(ROWS, top_k, dtype=FP32)
    yield Variant("bf16", partial(experts.combine, mixed, weights, empty(ROWS, size)))
    for rank in (16, 64):
        x, y, scales = empty(ROWS, 4096), empty(ROWS, 4096), empty(4, 3, dtype=FP32)
        a, b = empty(4, 3, rank, 4096), empty(4, 4096, rank)
        which, segment_of = empty(ROWS, dtype=torch.int32), empty(4096, dtype=torch.int32)
        added = partial(lora.add_lora, x, a, b, segment_of, which, scales, y)
        yield Variant(f"bf16, rank {rank}", added)


def _expert_weights(count: int, n: int, k: int) -> Iterator[tuple[str, experts.ExpertWeights, int]]:
    """(how they are stored, they, the least capability)"""
    per_row, blocks = empty(count, n, dtype=FP32), empty(count, n // 128, k // 128, dtype=FP32)
    yield "bf16", experts.ExpertWeights(empty(count, n, k)), 80
    yield "int8", experts.ExpertWeights(empty(count, n, k, dtype=INT8), per_row), 80
    yield "fp8", experts.ExpertWeights(empty(count, n, k, dtype=FP8), per_row), 89
    yield "fp8 blocks", experts.ExpertWeights(empty(count, n, k, dtype=FP8), blocks), 89
    packed, groups = empty(count, n, k // 2, dtype=torch.uint8), empty(count, n, k // 128, dtype=FP32)
    yield "int4 groups of 128", experts.ExpertWeights(packed, groups, None, 128), 80


def _sampling() -> Iterator[Variant]:
    """Qwen3's vocabulary."""
    vocab, slots = 151_936, 256
    i32 = torch.int32
    logits, floats = empty(ROWS, vocab, dtype=FP32), empty(ROWS, dtype=FP32)
    ints, longs = empty(ROWS, dtype=i32), empty(ROWS, dtype=torch.int64)
    few_ids, few = empty(slots, 1024, dtype=i32), empty(slots, 1024, dtype=FP32)
    counts = empty(slots, vocab, dtype=i32)
    p = sampling.Parameters(
        temperature=floats, top_k=ints, top_p=floats, min_p=floats, repetition=floats, presence=floats,
        frequency=floats, seeds=longs, num_prompt=ints, min_tokens=ints, ends=few_ids, num_ends=ints,
        bias_ids=few_ids, bias_values=few, num_biases=ints, counts=counts,
        prompts=empty(slots, vocab, dtype=INT8),
    )  # fmt: skip
    rows = sampling.SampledRows(ints, ints, ints, empty(ROWS, vocab // 32, dtype=i32), ints)
    yield Variant("any rows", partial(sampling.edit, logits, p, rows))
    tiles = -(-vocab // sampling.TILE)
    bests = sampling.Bests(empty(ROWS, tiles, dtype=FP32), empty(ROWS, tiles, dtype=i32))
    yield Variant("any row", partial(sampling.sample, logits, p, rows, bests, longs))
    inputs = step_rows.DecodeRows.empty(1, ROWS, 512, logits.device)
    state = empty(slots, dtype=torch.int64), empty(slots, dtype=i32)
    tables = empty(1, slots, 512, dtype=i32)
    yield Variant("slots to rows", partial(step_rows.begin, inputs, ROWS, *state, tables, 32, 1000))
    yield Variant("tokens to slots", partial(step_rows.end, ints, longs, *state, counts, advance=True))
    yield Variant("20 likeliest", partial(logprobs.top_logprobs, logits, longs, 20))


def _kv(heads: Heads) -> PagedKV:
    shape = (2, 1000, heads.num_kv_heads, 16)
    scales = empty(*shape, dtype=FP32) if heads.stored else None
    return PagedKV(empty(*shape, heads.dim, dtype=heads.stored or heads.dtype), scales)


def _rope_kv(heads: Heads, *, pdl: bool = False) -> None:
    qkv = empty(ROWS, heads.num_heads + 2 * heads.num_kv_heads, heads.dim, dtype=heads.dtype)
    at = empty(ROWS, dtype=torch.int64)
    weight = empty(heads.dim, dtype=heads.dtype)
    table = empty(4096, 2, heads.dim, dtype=heads.dtype)
    norms = rope_kv.HeadNorms(weight, weight, 1e-6)
    rope_kv.rope_kv(qkv, at, at, table, _kv(heads), heads.num_heads, norms, pdl=pdl)


def _decode(heads: Heads, scores: Scores = PLAIN, sinks: Tensor | None = None, *, pdl: bool = False) -> None:
    query = empty(ROWS, heads.num_heads, heads.dim, dtype=heads.dtype)
    plan = DecodePlan(ROWS, 2048, heads.num_heads, heads.dim, query.device)
    lens = empty(ROWS, dtype=torch.int32)
    decode_attention.plan_decode(plan, lens, scores.window, num_programs=49)
    tables = empty(ROWS, 512, dtype=torch.int32)
    decode_attention.decode_attention(
        query, _kv(heads), tables, lens, plan, scores, num_programs=49, sinks=sinks, pdl=pdl
    )


def _prefill(heads: Heads, scores: Scores = PLAIN, sinks: Tensor | None = None) -> None:
    query = empty(2048, heads.num_heads, heads.dim, dtype=heads.dtype)
    tables, start = empty(4, 512, dtype=torch.int32), empty(5, dtype=torch.int32)
    lens = empty(4, dtype=torch.int32)
    prefill_attention.prefill_attention(query, _kv(heads), tables, start, lens, scores, sinks=sinks)
