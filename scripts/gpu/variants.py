"""Which kernels models launch: every wrapper, called as a model of each kind calls it, without memory.

Llama-3.1-8B, Qwen3-4B/8B  32 heads, 8 KV heads of 128        Gemma 3 4B  8 heads, 4 KV heads of 256
Llama-3.2-1B               32 heads, 8 KV heads of  64        Phi-3 mini  32 heads, 32 KV heads of 96
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worker.kernels.triton import activation, decode_attention, norm, prefill_attention, rope_kv
from worker.kernels.triton.decode_attention import DecodePlan, Scores
from worker.kernels.triton.paged import PagedKV

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
    for heads in HEADS:
        least = 89 if heads.stored is FP8 else 80
        for wrapper in (_rope_kv, _decode, _prefill):
            yield Variant(f"{heads}", partial(wrapper, heads), least)
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
        yield Variant(f"{name}, RMSNorm + residual", partial(norm.norm, x, weight, 1e-6, residual=x))
        yield Variant(f"{name}, LayerNorm", partial(norm.norm, x, weight, 1e-6, bias=weight))
        yield Variant(f"{name}, SwiGLU", partial(activation.activate, gates))
        yield Variant(f"{name}, GeGLU", partial(activation.activate, gates, gelu=True))


def _kv(heads: Heads) -> PagedKV:
    shape = (2, 1000, heads.num_kv_heads, 16)
    scales = empty(*shape, dtype=FP32) if heads.stored else None
    return PagedKV(empty(*shape, heads.dim, dtype=heads.stored or heads.dtype), scales)


def _rope_kv(heads: Heads) -> None:
    qkv = empty(ROWS, heads.num_heads + 2 * heads.num_kv_heads, heads.dim, dtype=heads.dtype)
    at = empty(ROWS, dtype=torch.int64)
    weight = empty(heads.dim, dtype=heads.dtype)
    table = empty(4096, 2, heads.dim, dtype=heads.dtype)
    norms = rope_kv.HeadNorms(weight, weight, 1e-6)
    rope_kv.rope_kv(qkv, at, at, table, _kv(heads), heads.num_heads, norms)


def _decode(heads: Heads, scores: Scores = PLAIN, sinks: Tensor | None = None) -> None:
    query = empty(ROWS, heads.num_heads, heads.dim, dtype=heads.dtype)
    plan = DecodePlan(ROWS, 2048, heads.num_heads, heads.dim, query.device)
    lens = empty(ROWS, dtype=torch.int32)
    decode_attention.plan_decode(plan, lens, scores.window)
    tables = empty(ROWS, 512, dtype=torch.int32)
    decode_attention.decode_attention(
        query, _kv(heads), tables, lens, plan, scores, num_programs=33, sinks=sinks
    )


def _prefill(heads: Heads, scores: Scores = PLAIN, sinks: Tensor | None = None) -> None:
    query = empty(2048, heads.num_heads, heads.dim, dtype=heads.dtype)
    tables, start = empty(4, 512, dtype=torch.int32), empty(5, dtype=torch.int32)
    lens = empty(4, dtype=torch.int32)
    prefill_attention.prefill_attention(query, _kv(heads), tables, start, lens, scores, sinks=sinks)
