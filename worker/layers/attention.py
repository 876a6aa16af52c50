"""Causal self-attention with grouped queries over the paged cache."""

from dataclasses import dataclass

from torch import Tensor

from ..kernels.attention import AttentionMetadata, paged_attention, write_kv
from ..parallel import Group
from ..weights import Scope
from .linear import ColumnLinear, RowLinear
from .rotary import rotate_


@dataclass(slots=True)
class StepContext:
    """What every layer needs to know of a step besides the hidden states."""

    caches: list[Tensor]
    """Of each layer, see kernels/attention.py."""
    metadata: AttentionMetadata
    cos: Tensor
    sin: Tensor


class Attention:
    def __init__(
        self,
        scope: Scope,
        layer: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        group: Group,
        *,
        bias: bool = False,
    ) -> None:
        heads = group.span(num_heads, "num_attention_heads")
        kv_heads = group.shared_span(num_kv_heads, "num_key_value_heads")
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = heads.length, kv_heads.length, head_dim
        self.num_rotated = self.num_heads + self.num_kv_heads
        self.scale = head_dim**-0.5
        q, kv = heads.times(head_dim), kv_heads.times(head_dim)
        self.qkv_proj = ColumnLinear(scope, hidden_size, {"q_proj": q, "k_proj": kv, "v_proj": kv}, bias=bias)
        self.o_proj = RowLinear(scope, "o_proj", q, hidden_size, group, bias=bias)

    def __call__(self, x: Tensor, residual: Tensor, step: StepContext) -> Tensor:
        """[tokens, hidden] → residual + attention(x)"""
        qkv = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim)
        rotate_(qkv[:, : self.num_rotated], step.cos, step.sin)
        cache = step.caches[self.layer]
        write_kv(qkv[:, self.num_heads :], cache, step.metadata)
        mixed = paged_attention(qkv[:, : self.num_heads], cache, step.metadata, self.scale)
        return self.o_proj(mixed, residual)
