"""NativeMatrix: a matrix that the kernels in C multiply. Knows no kind of matrix, see native_matrices.py.

NativeWeights     what they read: data, which may lie in memory that is not this process's alone
 ├─ panels        the weights of all parts, in the order of the kernels' reading
 └─ parts         rows of the matrix that came from one matrix of the checkpoint: scales, zeros
"""

import ctypes
from collections.abc import Callable

import torch
from msgspec import Struct, structs
from torch import Tensor

from .cpu.library import Library

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8, W8A16, INT4, NF4, FP8 = 3, 4, 5, 6, 7
"""As matmul.h numbers the kinds; dense ones have the number of their type."""

MOST_INT8_COLUMNS = 1 << 17
"""As many products of two signed bytes fit a sum of 32 bits."""
MATMUL = 0
"""As tape.c numbers its calls."""

Allocate = Callable[[int], Tensor]
"""Bytes → uint8[bytes], aligned to a cache line"""


class NativePart(Struct, frozen=True):
    rows: int
    weight: Tensor | None
    """Rows may be strided. None: packed"""
    scales: Tensor | None = None
    zeros: Tensor | None = None
    scale_rows: int = 0
    """Rows that share a scale."""
    scale_stride: int = 0
    """Scales from one such row to the next."""


class NativeWeights(Struct, frozen=True, tag=True, kw_only=True):
    """Final, and never written to."""

    kind: int
    n: int
    k: int
    parts: tuple[NativePart, ...]
    bias: Tensor | None
    """float32[n]"""
    group: int
    """Columns that share a scale."""
    scale_type: int = TYPES[torch.float32]
    panels: Tensor | None = None
    """uint8; None: not packed yet, or weights lie where the parts say (int4)"""
    coded: bool = False
    """The panels are those of coded.h."""


class _Part(ctypes.Structure):
    """Part of matmul.h"""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("rows", ctypes.c_long),
        ("stride", ctypes.c_long),
        ("scale_rows", ctypes.c_long),
        ("scale_stride", ctypes.c_long),
    )


class _Matrix(ctypes.Structure):
    """Matrix of matmul.h"""

    _fields_ = (
        ("parts", ctypes.POINTER(_Part)),
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_parts", ctypes.c_long),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("group", ctypes.c_long),
        ("kind", ctypes.c_int),
        ("scale_type", ctypes.c_int),
        ("coded", ctypes.c_int),
    )


def pack(kernels: Library, weights: NativeWeights, allocate: Allocate) -> NativeWeights:
    """The same with the parts' weights copied into panels; coded, if the kernels may and it is smaller."""
    laid_out = _laid_out(weights)
    address = ctypes.addressof(laid_out)
    pointer, integer = ctypes.c_void_p, ctypes.c_long
    sizes = torch.empty(weights.n, dtype=torch.int64)
    coded = 0
    if kernels.codes:
        coded = kernels.function("tern_coded_bytes", integer, pointer, pointer)(address, sizes.data_ptr())
    panels = allocate(coded or kernels.function("tern_packed_bytes", integer, pointer)(address))
    if coded:
        code = kernels.function("tern_code", None, pointer, pointer, pointer)
        code(address, sizes.data_ptr(), panels.data_ptr())
    else:
        kernels.function("tern_pack", None, pointer, pointer)(address, panels.data_ptr())
    parts = tuple(structs.replace(part, weight=None) for part in weights.parts)
    return structs.replace(weights, panels=panels, parts=parts, coded=coded > 0)


class NativeMatrix:
    """A Matrix, see matmul.py."""

    def __init__(self, kernels: Library, weights: NativeWeights) -> None:
        self.shape = weights.n, weights.k
        assert 0 not in self.shape, self.shape
        assert weights.kind != INT8 or weights.k <= MOST_INT8_COLUMNS, self.shape
        self.weights = weights
        self._kernels = kernels
        self._matrix = _laid_out(weights)
        self._address = ctypes.addressof(self._matrix)
        pointer, integer, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        self._call = kernels.function(
            "tern_matmul", None, pointer, pointer, number, integer, integer, pointer, pointer, number
        )

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        m, k = x.shape
        (n, columns), kind, y_dtype = self.shape, self.weights.kind, out_dtype or x.dtype
        assert k == columns, (k, columns)
        assert kind >= INT8 or kind == TYPES[x.dtype], (kind, x.dtype)
        y = torch.empty(m, n, dtype=y_dtype)
        if not m:
            return y
        if x.stride(1) != 1:
            x = x.contiguous()
        if add is not None:
            add = add.contiguous()
            assert add.shape == y.shape, (add.shape, y.shape)
            assert add.dtype == y_dtype, (add.dtype, y_dtype)
        arguments = (
            self._address,
            x.data_ptr(),
            TYPES[x.dtype],
            m,
            x.stride(0),
            None if add is None else add.data_ptr(),
            y.data_ptr(),
            TYPES[y_dtype],
        )
        self._call(*arguments)
        if self._kernels.recorder is not None:
            self._kernels.recorder.add(MATMUL, arguments, x, add, y)
        return y


def _laid_out(weights: NativeWeights) -> _Matrix:
    """As C sees it: only pointers, so whoever uses it keeps the weights. It keeps its parts itself."""
    parts = (_Part * len(weights.parts))(*map(_part, weights.parts))
    return _Matrix(
        parts=parts,
        panels=_address_of(weights.panels),
        bias=_address_of(weights.bias),
        num_parts=len(parts),
        n=weights.n,
        k=weights.k,
        group=weights.group,
        kind=weights.kind,
        scale_type=weights.scale_type,
        coded=weights.coded,
    )


def _part(part: NativePart) -> _Part:
    weight, stride = part.weight, 0
    if weight is not None:
        assert weight.stride(1) == 1 or weight.shape[1] == 1, weight.stride()
        stride = weight.stride(0) * weight.element_size()
    return _Part(
        weight=_address_of(weight),
        scales=_address_of(part.scales),
        zeros=_address_of(part.zeros),
        rows=part.rows,
        stride=stride,
        scale_rows=part.scale_rows,
        scale_stride=part.scale_stride,
    )


def _address_of(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
