"""The paged KV cache as kernels see it, and its quantized forms.

One layer's cache is [2, num_blocks, num_kv_heads, block_size, head_dim] (keys, values), as in
kernels/attention.py. A token's slot is block · block_size + its place in the block.

A cache of one byte per number (int8, or float8 e4m3) has a float32 scale for every key and every value
vector beside it, [2, num_blocks, num_kv_heads, block_size]: number ≈ stored · scale. The scale follows
from the vector when it is written, so nothing is calibrated, and costs 4 bytes per head_dim. In attention
a key's scale multiplies its score and a value's scale its weight: dequantizing costs two multiplications
per token and head instead of 2 · head_dim.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Largest number of each one-byte type."""
LEAST_AMPLITUDE = 1e-8
"""Of a vector, so that a scale is never zero."""


class PagedKV(NamedTuple):
    """One layer's cache."""

    cache: Tensor
    """[2, num_blocks, num_kv_heads, block_size, head_dim]"""
    scales: Tensor | None = None
    """float32 [2, num_blocks, num_kv_heads, block_size]; None: not quantized"""


@triton.jit
def cache_rows(
    table_ptr,  # int32 [blocks of one sequence]
    positions,  # [n] of tokens in the sequence
    seen,  # bool [n]: which of them to look up
    head,
    num_kv_heads,
    BLOCK_SIZE: tl.constexpr,
):
    """Rows of the cache, seen as [..., head_dim], that hold these tokens."""
    block = tl.load(table_ptr + positions // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
    return (block * num_kv_heads + head) * BLOCK_SIZE + positions % BLOCK_SIZE


@triton.jit
def quantize(x, LIMIT: tl.constexpr, ROUND: tl.constexpr):
    """float32 [n] → (numbers within ±LIMIT, still float32; scale). ROUND: to integers, halves up."""
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-8) / LIMIT
    x = x / scale
    if ROUND:
        x = tl.floor(x + 0.5)
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT), scale


def quantize_reference(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[..., dim] → (numbers of `dtype`, float32 scales [...])."""
    limit = LIMITS[dtype]
    scales = x.float().abs().amax(-1).clamp(min=LEAST_AMPLITUDE) / limit
    numbers = x.float() / scales.unsqueeze(-1)
    if dtype == torch.int8:
        numbers = (numbers + 0.5).floor()
    return numbers.clamp(-limit, limit).to(dtype), scales


def gather_reference(kv: PagedKV, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of a sequence, float32 [length, num_kv_heads, head_dim] each."""
    blocks = table.long()[: -(-length // kv.cache.shape[3])]
    numbers = kv.cache[:, blocks].float()
    if kv.scales is not None:
        numbers = numbers * kv.scales[:, blocks].unsqueeze(-1)
    flat = numbers.transpose(2, 3).flatten(1, 2)[:, :length]
    return flat[0], flat[1]
