"""Attention whose softmax is not the plain one: soft caps (Gemma 2), sinks (gpt-oss), or both.

A soft cap c bends scores s into (-c, c): c tanh(s / c). A sink is a logit of each head that takes part in the
softmax and stands for nothing: weights then sum to less than 1.

As paged_attention of attention.py, over the same plan, in torch where there are no kernels in C: what torch
fuses has no place for either. Computes in float32. Not tuned: prefill holds a chunk's scores at once.
"""

import torch
from torch import Tensor

from .attention import AttentionMetadata
from .paged_kv import PagedKV


def bent_attention(
    query: Tensor,
    kv: PagedKV,
    metadata: AttentionMetadata,
    scale: float,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [tokens, num_heads, head_dim], sinks float32[num_heads] → [tokens, num_heads * head_dim]"""
    if metadata.attend is not None:
        return metadata.attend(query, kv, metadata.native, scale, soft_cap, sinks)
    tokens, num_heads, dim = query.shape
    heads = kv.cache.shape[2]
    out = torch.empty(tokens, num_heads, dim, dtype=query.dtype)

    def mix(begin: int, end: int, rows: Tensor, num_rows: int, num_keys: int | None, mask: Tensor) -> None:
        """Tokens of `num_rows` sequences against their blocks; `mask` is added, [rows, 1, tokens, keys]."""
        keys, values = kv.gather(rows).view(2, num_rows, heads, 1, -1, dim)[..., :num_keys, :].float()
        grouped = query[begin:end].float().view(num_rows, -1, heads, num_heads // heads, dim)
        scores = grouped.permute(0, 2, 3, 1, 4) @ keys.transpose(-1, -2) * scale
        if soft_cap is not None:
            scores = scores.div_(soft_cap).tanh_().mul_(soft_cap)
        scores = scores + mask
        if sinks is not None:
            sink = sinks.view(1, heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        mixed = weights @ values
        out[begin:end] = mixed.permute(0, 3, 1, 2, 4).reshape(end - begin, num_heads, dim)

    for chunk in metadata.decode_chunks:
        num_rows = chunk.end - chunk.begin
        mask = chunk.mask.view(num_rows, heads, 1, 1, -1)
        mix(chunk.begin, chunk.end, chunk.blocks, num_rows, None, mask)
    for group in metadata.prefill_groups:
        length = (group.end - group.begin) // group.num_rows
        mask = torch.full((length, length), -torch.inf).triu_(1)
        mix(group.begin, group.end, group.blocks, group.num_rows, length, mask)
    for stretch in metadata.prefill_stretches:
        mask = torch.zeros(stretch.mask.shape).masked_fill_(~stretch.mask, -torch.inf)
        mix(stretch.begin, stretch.end, stretch.blocks, 1, stretch.num_keys, mask)
    return out.flatten(1)
