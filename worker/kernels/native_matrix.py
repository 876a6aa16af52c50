"""A matrix as the kernels in C see it: pointers and sizes. Knows no kind of matrix, see matmul.py."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .cpu.library import Library

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8, W8A16, INT4, NF4, FP8 = 3, 4, 5, 6, 7
"""As matmul.h numbers the kinds."""

MOST_INT8_COLUMNS = 1 << 17
"""As many products of two signed bytes fit a sum of 32 bits."""
MATMUL = 0
"""As tape.c numbers its calls."""


class Part(ctypes.Structure):
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
        ("parts", ctypes.POINTER(Part)),
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_parts", ctypes.c_long),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("group", ctypes.c_long),
        ("kind", ctypes.c_int),
        ("scale_type", ctypes.c_int),
    )


def part_of(weight: Tensor, rows: int | None = None, **more: int | None) -> Part:
    """A part of which nothing but the weight is known yet."""
    assert weight.stride(1) == 1 or weight.shape[1] == 1, weight.stride()
    stride = weight.stride(0) * weight.element_size()
    return Part(weight=weight.data_ptr(), rows=len(weight) if rows is None else rows, stride=stride, **more)


class NativeMatrix:
    """A matrix as the kernels see it. It packs weights into panels of its own. Scales and zeros, and int4's
    weights, which have another order already, are kept by its owner."""

    def __init__(
        self,
        kernels: Library,
        kind: int,
        shape: tuple[int, int],
        parts: Sequence[Part],
        bias: Tensor | None,
        group: int = 0,
        scale_type: torch.dtype = torch.float32,
    ) -> None:
        self.n, self.k = shape
        assert 0 not in shape, shape
        assert kind != INT8 or self.k <= MOST_INT8_COLUMNS, shape
        self._bias = None if bias is None else bias.float().contiguous()
        self._kernels = kernels
        self._parts = (Part * len(parts))(*parts)
        self._matrix = _Matrix(
            parts=self._parts,
            bias=None if self._bias is None else self._bias.data_ptr(),
            num_parts=len(parts),
            n=self.n,
            k=self.k,
            group=group or self.k,
            kind=kind,
            scale_type=TYPES[scale_type],
        )
        self._address = ctypes.addressof(self._matrix)
        if kind != INT4:
            self._panels = self._pack()
            self._matrix.panels = self._panels.data_ptr()
        pointer, integer, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        self._call = kernels.function(
            "tern_matmul", None, pointer, pointer, number, integer, integer, pointer, pointer, number
        )

    def _pack(self) -> Tensor:
        size = self._kernels.function("tern_packed_bytes", ctypes.c_long, ctypes.c_void_p)
        packed = torch.empty(size(self._address), dtype=torch.uint8)
        self._kernels.function("tern_pack", None, ctypes.c_void_p, ctypes.c_void_p)(
            self._address, packed.data_ptr()
        )
        return packed

    def multiply(self, x: Tensor, add: Tensor | None, out_dtype: torch.dtype) -> Tensor:
        m, k = x.shape
        assert k == self.k, (k, self.k)
        y = torch.empty(m, self.n, dtype=out_dtype)
        if not m:
            return y
        if x.stride(1) != 1:
            x = x.contiguous()
        if add is not None:
            add = add.contiguous()
            assert add.shape == y.shape, (add.shape, y.shape)
            assert add.dtype == out_dtype, (add.dtype, out_dtype)
        arguments = (
            self._address,
            x.data_ptr(),
            TYPES[x.dtype],
            m,
            x.stride(0),
            None if add is None else add.data_ptr(),
            y.data_ptr(),
            TYPES[out_dtype],
        )
        self._call(*arguments)
        if self._kernels.recorder is not None:
            self._kernels.recorder.add(MATMUL, arguments, x, add, y)
        return y
