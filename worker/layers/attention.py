"""Causal self-attention with grouped queries over the paged cache."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..kernels.attention import StepMetadata, paged_attention, write_kv
from ..kernels.device import AttentionKernel
from ..kernels.native_attention import FusedAttention, HeadNorms
from ..kernels.paged_kv import PagedKV
from ..parallel import Group
from ..weights import Scope
from .linear import ColumnLinear, RowLinear
from .norm import Norm, RMSNorm
from .rotary import rotate_


@dataclass(slots=True)
class StepContext:
    """What layers of one kind need to know of a step besides the hidden states."""

    caches: list[PagedKV]
    """Of each layer, see kernels/paged_kv.py."""
    metadata: StepMetadata
    """Of each layer."""
    cos: Tensor | None
    """None: these layers do not rotate."""
    sin: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What tells one family's attention from another's."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool = False
    """Of q, k and v."""
    out_bias: bool = False
    scale: float | None = None
    """Of the scores; None: head_dim ** -0.5"""
    rotary_dim: int | None = None
    """The first dimensions of a head, which alone are rotated; None: all."""
    head_norm: Callable[[Scope, int], RMSNorm] | None = None
    """Of each query and key over its head_dim, before rotation: `q_norm` and `k_norm`."""
    fused: str | None = None
    """The checkpoint's one matrix for q, k and v, if it has one."""
    out: str = "o_proj"
    transposed: bool = False
    """The checkpoint's matrices are [in, out]."""


_KV_SCALES = (
    *("q_scale", "k_scale", "v_scale", "kv_scale", "k_proj.k_scale", "v_proj.v_scale"),
    *("k_proj.output_scale", "v_proj.output_scale"),
)
"""Calibrated for an 8-bit cache, by several writers: ours has scales of its own, or none."""


class Attention:
    def __init__(self, scope: Scope, layer: int, spec: AttentionSpec, group: Group) -> None:
        heads = group.span(spec.num_heads, "num_attention_heads")
        kv_heads = group.shared_span(spec.num_kv_heads, "num_key_value_heads")
        dim, hidden_size = spec.head_dim, spec.hidden_size
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = heads.length, kv_heads.length, dim
        self.num_rotated = self.num_heads + self.num_kv_heads
        self.rotary_dim = None if spec.rotary_dim == dim else spec.rotary_dim
        self.scale = dim**-0.5 if spec.scale is None else spec.scale
        self.q_norm = spec.head_norm(scope / "q_norm", dim) if spec.head_norm else None
        self.k_norm = spec.head_norm(scope / "k_norm", dim) if spec.head_norm else None
        (scope / "rotary_emb").allow("inv_freq")  # a table that older checkpoints hold
        for name in _KV_SCALES:
            scope.allow(name)
        self.fused = self._fuse(scope, dim)
        self.on_device = self._on_device(scope)
        q, kv = heads.times(dim), kv_heads.times(dim)
        merged = {spec.fused: [q, kv, kv]} if spec.fused else {"q_proj": [q], "k_proj": [kv], "v_proj": [kv]}
        self.qkv_proj = ColumnLinear(scope, hidden_size, merged, bias=spec.bias, transposed=spec.transposed)
        self.o_proj = RowLinear(
            scope, spec.out, q, hidden_size, group, bias=spec.out_bias, transposed=spec.transposed
        )

    def __call__(
        self, x: Tensor, residual: Tensor | None, step: StepContext, norm: Norm | None = None
    ) -> Tensor:
        """[tokens, hidden] → residual + attention(norm(x))"""
        qkv = self.qkv_proj(x, norm).view(x.shape[0], -1, self.head_dim)
        kv, metadata = step.caches[self.layer], step.metadata[self.layer]
        if self.on_device is not None:
            return self.o_proj(self.on_device(qkv, kv, metadata, step.cos, step.sin), residual)
        if self.fused is not None and metadata.attend is not None:
            return self.o_proj(self.fused(qkv, kv, metadata.native, step.cos, step.sin), residual)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = qkv[:, : self.num_heads], qkv[:, self.num_heads : self.num_rotated]
            queries.copy_(self.q_norm(queries))
            keys.copy_(self.k_norm(keys))
        if step.cos is not None and step.sin is not None:
            rotate_(qkv[:, : self.num_rotated, : self.rotary_dim], step.cos, step.sin)
        write_kv(qkv[:, self.num_heads :], kv, metadata)
        mixed = paged_attention(qkv[:, : self.num_heads], kv, metadata, self.scale)
        return self.o_proj(mixed, residual)

    def _fuse(self, scope: Scope, dim: int) -> FusedAttention | None:
        if scope.kernels is None:
            return None
        return FusedAttention(
            scope.kernels, self.num_heads, self.scale, self.rotary_dim or dim, self._head_norms()
        )

    def _on_device(self, scope: Scope) -> AttentionKernel | None:
        if scope.device is None:
            return None
        return scope.device.attention(self.num_heads, self.scale, self._head_norms())

    def _head_norms(self) -> HeadNorms | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(query=self.q_norm.weight, key=self.k_norm.weight, eps=self.q_norm.eps)
