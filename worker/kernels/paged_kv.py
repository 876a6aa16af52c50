"""One layer's paged KV cache, and its quantized forms. What attends to it is in attention.py (torch),
native_attention.py (C) and triton/.

The cache is [2, num_blocks, num_kv_heads, block_size, head_dim] (keys, values). A cache of one byte per
number (int8, or float8 e4m3) has a float32 scale for every key and every value vector beside it:

    scale = max |x| / limit      code = x / scale, to int8 rounded, halves up      x ≈ code · scale

The scale follows from the vector when it is written, so nothing is calibrated, a block's bytes depend on
its own tokens alone, and it costs 4 bytes per head_dim. A vector that is not finite has a scale that is
not, so that whoever attends to it finds out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..memory import QUANTIZED_KV

LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Largest number of each one-byte type."""
LEAST_AMPLITUDE = 1e-8
"""Of a vector, so that a scale is never zero."""
DTYPES = dict(zip(QUANTIZED_KV, (torch.float8_e4m3fn, torch.int8), strict=True))


class PagedKV(NamedTuple):
    """One layer's cache."""

    cache: Tensor
    """[2, num_blocks, num_kv_heads, block_size, head_dim]"""
    scales: Tensor | None = None
    """float32 [2, num_blocks, num_kv_heads, block_size]; None: not quantized"""

    def write(self, vectors: Tensor, rows: Tensor) -> None:
        """[…, head_dim] to rows […] of the cache, seen as [all, head_dim]."""
        into = self.cache.view(-1, self.cache.shape[-1])
        if self.scales is None:
            into[rows] = vectors
        else:
            codes, self.scales.view(-1)[rows] = quantize(vectors, self.cache.dtype)
            into.view(torch.uint8)[rows] = codes.view(torch.uint8)

    def gather(self, rows: Tensor, scratch: Tensor | None = None) -> Tensor:
        """int64 [n] of the cache seen as [all, block_size * head_dim] → [n, block_size, head_dim] as
        they are, or float32 where they are quantized. `scratch`: for what is not."""
        size, dim = self.cache.shape[3:]
        blocks = self.cache.view(-1, size * dim)
        if self.scales is None:
            return torch.index_select(blocks, 0, rows, out=scratch).view(-1, size, dim)
        codes = blocks.view(torch.uint8).index_select(0, rows).view(self.cache.dtype)
        scales = self.scales.view(-1, size).index_select(0, rows)
        return codes.view(-1, size, dim).float() * scales.unsqueeze(-1)


def dtype_of(wanted: str, model: torch.dtype) -> torch.dtype:
    """Of the cache, by `--kv-cache-dtype`; `model` computes in its own."""
    return model if wanted == "auto" else DTYPES[wanted]


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[..., dim] → (codes of `dtype`, float32 scales [...])."""
    limit = LIMITS[dtype]
    scales = x.float().abs().amax(-1).clamp(min=LEAST_AMPLITUDE) / limit
    codes = x.float() / scales.unsqueeze(-1)
    if dtype == torch.int8:
        codes = (codes + 0.5).floor()
    return codes.clamp(-limit, limit).nan_to_num(0.0).to(dtype), scales
