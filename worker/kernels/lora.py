"""What LoRA adapters add to a matrix's products (Hu et al., 2021), each row's own in one batch.

    y[row] += s · B (A x[row])          A [rank, K], B [N, rank], s of the adapter that the row has

A matrix that is several of the checkpoint's, one under the other, has an A, a B and an s of each: a *segment*
of its rows. On the CPU in C (cpu/lora.c), where a row's sums do not depend on its company; else by torch,
which is the reference. A device has its own, see triton/lora.py.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .cpu.library import Library
from .matmul import Matrix
from .native_matrix import TYPES

NONE = -1
"""In place of an adapter's number."""
LORA = 4
"""As tape.c numbers its calls."""


class Factors(NamedTuple):
    """What one adapter adds to one segment."""

    a: Tensor
    """[rank, K]"""
    b: Tensor
    """[rows of the segment, rank]"""
    scale: float


Update = Sequence[Factors | None]
"""What one adapter adds to a matrix, by segment; None: nothing."""


class AdapterRows:
    """Which adapter each row of the present step has. All of a model's matrices look here."""

    def __init__(self) -> None:
        self.numbers = torch.empty(0, dtype=torch.int32)
        """int32 [rows]; NONE: none"""
        self.order = self.numbers
        """int32 [rows], on the CPU: the rows, those with one adapter beside each other"""
        self.some = False
        """Otherwise no row has any: there is nothing to do."""


def padded(rank: int) -> int:
    """Up to which a device fills all factors of a matrix, with zeros."""
    return max(1 << (rank - 1).bit_length(), 16)


class Product(Protocol):
    def add_to(self, y: Tensor, x: Tensor) -> None:
        """y [rows, N] += what the rows' adapters make of x [rows, K], in place."""


class AdaptedMatrix:
    """A Matrix that adapters change."""

    def __init__(self, matrix: Matrix, product: Product) -> None:
        self.matrix, self.product = matrix, product
        self.shape = matrix.shape

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        y = self.matrix.multiply(x, add, out_dtype)
        self.product.add_to(y, x)
        return y


class TorchProduct:
    """Product, adapter by adapter."""

    def __init__(self, segments: Sequence[int], updates: Sequence[Update], rows: AdapterRows) -> None:
        """`segments`: rows of each. `updates`: of each adapter."""
        self._segments, self._updates, self._rows = list(segments), updates, rows

    def add_to(self, y: Tensor, x: Tensor) -> None:
        if not self._rows.some:
            return
        for number in sorted(set(self._rows.numbers.tolist())):
            if number == NONE:
                continue
            mine = (self._rows.numbers == number).nonzero().squeeze(1)
            inputs, outputs = x[mine].float(), y[mine].float()
            parts = outputs.split_with_sizes(self._segments, 1)
            for part, factors in zip(parts, self._updates[number], strict=True):
                if factors is not None:
                    part += inputs @ factors.a.float().T * factors.scale @ factors.b.float().T
            y[mine] = outputs.to(y.dtype)


class _Up(ctypes.Structure):
    """Up of lora.h"""

    _fields_ = (("b", ctypes.c_void_p), ("at", ctypes.c_int64), ("rank", ctypes.c_int64))


class _Adapter(ctypes.Structure):
    """Adapter of lora.h"""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("ups", ctypes.POINTER(_Up)),
        ("rank", ctypes.c_int64),
    )


class _Lora(ctypes.Structure):
    """Lora of lora.h"""

    _fields_ = (
        ("adapters", ctypes.POINTER(_Adapter)),
        ("starts", ctypes.c_void_p),
        ("segments", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("most_rank", ctypes.c_int64),
        ("type", ctypes.c_int64),
    )


class NativeProduct:
    """Product, in C."""

    def __init__(
        self, kernels: Library, segments: Sequence[int], updates: Sequence[Update], rows: AdapterRows
    ) -> None:
        """`segments` and `updates` as of TorchProduct; all factors are of one type."""
        self._kernels, self._rows = kernels, rows
        self._kept: list[object] = []
        """What C points to."""
        present = [factors for update in updates for factors in update if factors is not None]
        self._starts = torch.tensor([0, *segments]).cumsum(0)
        self._adapters = (_Adapter * len(updates))(*map(self._adapter, updates))
        self._most_rank = max(adapter.rank for adapter in self._adapters)
        self._lora = _Lora(
            self._adapters,
            self._starts.data_ptr(),
            len(segments),
            present[0].a.shape[1],
            sum(segments),
            self._most_rank,
            TYPES[present[0].a.dtype],
        )
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._call = kernels.function(
            "tern_lora", None, *[pointer] * 4, *[integer] * 3, pointer, integer, pointer
        )

    def _adapter(self, update: Update) -> _Adapter:
        """A's and scales of all segments below one another; each segment's B transposed."""
        present = [factors for factors in update if factors is not None]
        if not present:
            return _Adapter()
        a = torch.cat([factors.a for factors in present])
        scales = torch.cat([torch.full((len(f.a),), f.scale, dtype=torch.float32) for f in present])
        ups, at = [], 0
        for factors in update:
            if factors is None:
                ups.append(_Up())
                continue
            b = factors.b.T.contiguous()
            ups.append(_Up(b.data_ptr(), at, len(b)))
            self._kept.append(b)
            at += len(b)
        held = (_Up * len(ups))(*ups)
        self._kept += [a, scales, held]
        return _Adapter(a.data_ptr(), scales.data_ptr(), held, at)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        numbers, order, recorder = self._rows.numbers, self._rows.order, self._kernels.recorder
        if not self._rows.some and recorder is None:  # a tape is played with others, too
            return
        if x.stride(1) != 1:
            x = x.contiguous()
        assert y.is_contiguous()
        h = torch.empty(len(x), self._most_rank)
        arguments = (
            ctypes.addressof(self._lora),
            numbers.data_ptr(),
            order.data_ptr(),
            x.data_ptr(),
            TYPES[x.dtype],
            len(x),
            x.stride(0),
            y.data_ptr(),
            TYPES[y.dtype],
            h.data_ptr(),
        )
        self._call(*arguments)
        if recorder is not None:
            recorder.add(LORA, arguments, numbers, order, x, y, h)
