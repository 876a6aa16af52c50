"""Attention whose scores s are bent into (-c, c) by c tanh(s / c) before the softmax, as Gemma 2 has it.

As paged_attention of attention.py, over the same plan, in torch where there are no kernels in C: what torch
fuses has no place for a cap. Computes in float32. Not tuned: prefill holds a chunk's scores at once.
"""

import torch
from torch import Tensor

from .attention import AttentionMetadata
from .paged_kv import PagedKV


def soft_capped_attention(
    query: Tensor, kv: PagedKV, metadata: AttentionMetadata, scale: float, soft_cap: float
) -> Tensor:
    """query [tokens, num_heads, head_dim] → [tokens, num_heads * head_dim]"""
    if metadata.attend is not None:
        return metadata.attend(query, kv, metadata.native, scale, soft_cap)
    tokens, num_heads, dim = query.shape
    heads = kv.cache.shape[2]
    out = torch.empty(tokens, num_heads, dim, dtype=query.dtype)

    def mix(begin: int, end: int, rows: Tensor, num_rows: int, num_keys: int | None, mask: Tensor) -> None:
        """Tokens of `num_rows` sequences against their blocks; `mask` is added, [rows, 1, tokens, keys]."""
        keys, values = kv.gather(rows).view(2, num_rows, heads, 1, -1, dim)[..., :num_keys, :].float()
        grouped = query[begin:end].float().view(num_rows, -1, heads, num_heads // heads, dim)
        scores = grouped.permute(0, 2, 3, 1, 4) @ keys.transpose(-1, -2) * scale
        scores = scores.div_(soft_cap).tanh_().mul_(soft_cap) + mask
        mixed = scores.softmax(-1) @ values
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
