"""Paged attention in C (cpu/attention.c, cpu/kv_write.c): one call per layer, without gathering anything.

    FusedAttention   of one layer: norms of heads → rotation → KV write → attention, in one call
    NativeAttention  attention alone, for queries that are ready
    NativeStep       a step's layout as C wants it: pointers into the planner's own arrays

A query's result depends on its own sequence alone, bit for bit: not on chunks, company, threads or block
size, and a decoded token's is the one that a prefill would give. Sums are in float32, or exact in integers
(an int8 cache). Nothing outside of a sequence's own window is read, so what others left in a block never
matters. The torch reference is attention.py.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cpu.library import Library
from .paged_kv import PagedKV

Ints = NDArray[np.int64]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As lanes.h numbers them."""
MOST_DIM = 1024
MOST_INT8_DIM = 256
"""Of an int8 cache."""
ATTEND = 3
"""As tape.c numbers its calls."""
_POINTER, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _Layer(ctypes.Structure):
    """attention_layer of attention.h"""

    _fields_: ClassVar[Sequence[tuple[str, type]]] = (
        ("keys", _POINTER),
        ("values", _POINTER),
        ("key_scales", _POINTER),
        ("value_scales", _POINTER),
        ("sinks", _POINTER),
        ("q_norm", _POINTER),
        ("k_norm", _POINTER),
        ("norm_dtype", _INT),
        ("norm_eps", _DOUBLE),
        ("dtype", _INT),
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("block_size", _INT),
        ("rotary_dim", _INT),
        ("scale", _DOUBLE),
        ("soft_cap", _DOUBLE),
    )


class _Step(ctypes.Structure):
    """attention_step of attention.h"""

    _fields_: ClassVar[Sequence[tuple[str, type]]] = (
        ("num_sequences", _INT),
        ("num_tokens", _INT),
        ("query_start", _POINTER),
        ("token_rows", _POINTER),
        ("positions", _POINTER),
        ("block_tables", _POINTER),
        ("table_stride", _INT),
        ("window", _INT),
    )


class NativeStep:
    """Keeps the arrays alive that it points into."""

    def __init__(
        self,
        query_start: Ints,
        token_rows: Ints,
        positions: Ints,
        block_tables: NDArray[np.int32],
        window: int | None,
    ) -> None:
        """block_tables [n, width]; places outside of the window are not read."""
        arrays = (query_start, token_rows, positions)
        assert all(array.dtype == np.int64 and array.flags.c_contiguous for array in arrays)
        assert block_tables.dtype == np.int32
        assert block_tables.strides[1] == 4
        self._keep = (*arrays, block_tables)
        self.args = _Step(
            len(query_start) - 1,
            len(positions),
            *(array.ctypes.data for array in self._keep),
            block_tables.strides[0] // 4,
            window or 0,
        )
        self.pointer = ctypes.addressof(self.args)

    @property
    def only_decodes(self) -> bool:
        return bool(self.args.num_sequences == self.args.num_tokens)

    def take(self, other: "NativeStep") -> None:
        """Become another step, at the same address."""
        self._keep = other._keep
        ctypes.memmove(self.pointer, other.pointer, ctypes.sizeof(_Step))


@dataclass(frozen=True, kw_only=True)
class HeadNorms:
    """RMSNorms of each query head and each key head, before rotation."""

    query: Tensor
    key: Tensor
    eps: float


class NativeAttention:
    def __init__(self, kernels: Library) -> None:
        self._attend = kernels.function(
            "tern_attend", ctypes.c_int, _POINTER, _POINTER, _POINTER, _INT, _POINTER
        )

    @staticmethod
    def supports(head_dim: int, dtype: torch.dtype, stored: torch.dtype | None = None) -> bool:
        """`stored`: of the cache, if that is another than the queries' `dtype`."""
        if stored not in (None, dtype) and (stored != torch.int8 or head_dim > MOST_INT8_DIM):
            return False
        return head_dim % 8 == 0 and head_dim <= MOST_DIM and dtype in DTYPES

    def __call__(
        self,
        query: Tensor,
        kv: PagedKV,
        step: NativeStep,
        scale: float,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """query [tokens, num_heads, head_dim], each token's heads in one piece; sinks float32[num_heads]
        → [tokens, num_heads * head_dim]"""
        tokens, heads, dim = query.shape
        if query.stride(2) != 1 or query.stride(1) != dim or query.stride(0) % dim:
            query = query.contiguous()
        layer = _layer(kv, query.dtype, heads, scale, soft_cap, sinks)
        out = torch.empty(tokens, heads * dim, dtype=query.dtype)
        stride = query.stride(0) // dim
        check(self._attend(ctypes.addressof(layer), step.pointer, query.data_ptr(), stride, out.data_ptr()))
        return out


class FusedAttention:
    """Everything between one layer's two projections."""

    def __init__(
        self,
        kernels: Library,
        num_heads: int,
        scale: float,
        rotary_dim: int,
        norms: HeadNorms | None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        """`rotary_dim`: of the rotation, where a step has one."""
        self._call = kernels.function(
            "tern_write_kv_and_attend",
            ctypes.c_int,
            *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER),
        )
        self._kernels = kernels
        self._num_heads, self._scale, self._rotary_dim = num_heads, scale, rotary_dim
        self._norms, self._soft_cap, self._sinks = norms, soft_cap, sinks
        self._layer: _Layer | None = None
        self._pointer = self._cache = 0

    def __call__(
        self, qkv: Tensor, kv: PagedKV, step: NativeStep, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        """qkv [tokens, heads + 2 * kv heads, head_dim] in one piece, which is changed; cos and sin
        [tokens, 1, rotary_dim], or None: no rotation → [tokens, heads * head_dim]"""
        if kv.cache.data_ptr() != self._cache:
            self._prepare(kv, qkv.dtype, rotates=cos is not None)
        out = torch.empty(qkv.shape[0], self._num_heads * qkv.shape[2], dtype=qkv.dtype)
        rotation = (
            (0, 0, 0) if cos is None or sin is None else (cos.data_ptr(), sin.data_ptr(), cos.stride(0))
        )
        arguments = self._pointer, step.pointer, qkv.data_ptr(), *rotation, out.data_ptr()
        check(self._call(*arguments))
        if self._kernels.recorder is not None:
            self._kernels.recorder.add(ATTEND, arguments, qkv, cos, sin, out)
        return out

    def _prepare(self, kv: PagedKV, dtype: torch.dtype, *, rotates: bool) -> None:
        layer = _layer(kv, dtype, self._num_heads, self._scale, self._soft_cap, self._sinks)
        layer.rotary_dim = self._rotary_dim if rotates else 0
        if self._norms is not None:
            layer.q_norm, layer.k_norm = self._norms.query.data_ptr(), self._norms.key.data_ptr()
            layer.norm_dtype, layer.norm_eps = DTYPES[self._norms.query.dtype], self._norms.eps
        self._layer, self._pointer, self._cache = layer, ctypes.addressof(layer), kv.cache.data_ptr()


def _layer(
    kv: PagedKV,
    dtype: torch.dtype,
    num_heads: int,
    scale: float,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> _Layer:
    _, _, kv_heads, block_size, dim = kv.cache.shape
    assert kv.cache.dtype == (dtype if kv.scales is None else torch.int8)
    layer = _Layer()
    layer.keys, layer.values = (side.data_ptr() for side in kv.cache)
    if kv.scales is not None:
        layer.key_scales, layer.value_scales = (side.data_ptr() for side in kv.scales)
    layer.sinks = None if sinks is None else sinks.data_ptr()
    layer.dtype = DTYPES[dtype]
    layer.num_heads, layer.num_kv_heads, layer.head_dim = num_heads, kv_heads, dim
    layer.block_size = block_size
    layer.scale, layer.soft_cap = scale, soft_cap or 0.0
    return layer


def check(status: int) -> None:
    """Raises MemoryError for what an attention kernel returns when it has none."""
    if status:
        raise MemoryError("no memory for the plan of attention")
