"""Looking tokens up in the paged KV cache of ../paged_kv.py, and rounding vectors as it stores them.

A token's slot is block · block_size + its place in the block. In attention a key's scale multiplies its score
and a value's scale its weight: dequantizing costs two multiplications per token and head instead of
2 · head_dim.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..paged_kv import PagedKV


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
    """float32 [n] → (numbers within ±LIMIT, still float32; scale). ROUND: to integers, halves up. A maximum
    passes over NaN, so the scale of a vector with one is made NaN."""
    sick = tl.max((x != x).to(tl.int32), axis=0) > 0
    scale = tl.maximum(tl.max(tl.where(x == x, tl.abs(x), 0.0), axis=0), 1e-8) / LIMIT
    x = x / scale
    if ROUND:
        x = tl.floor(x + 0.5)
    x = tl.where(x == x, x, 0.0)
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT), tl.where(sick, float("nan"), scale)


def gather_reference(kv: PagedKV, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of a sequence, float32 [length, num_kv_heads, head_dim] each."""
    blocks = table.long()[: -(-length // kv.cache.shape[3])]
    numbers = kv.cache[:, blocks].float()
    if kv.scales is not None:
        numbers = numbers * kv.scales[:, blocks].unsqueeze(-1)
    flat = numbers.transpose(2, 3).flatten(1, 2)[:, :length]
    return flat[0], flat[1]
