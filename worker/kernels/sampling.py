"""From logits to tokens in C (cpu/sampling.c): one pass to choose, draws without sorting.
The torch reference is argmax, and filters.py.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cpu.library import Library

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class Limits:
    """Of the rows that are drawn, each [n]."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    """0: all"""
    top_p: NDArray[np.float32]
    """1: all"""
    min_p: NDArray[np.float32]
    """0: all"""


class SamplingKernels:
    def __init__(self, kernels: Library) -> None:
        self._choose = kernels.function("tern_choose", None, _POINTER, *[_INT] * 3, *[_POINTER] * 2)
        self._mask = kernels.function("tern_mask", None, _POINTER, *[_INT] * 3, *[_POINTER] * 2, _INT)
        self._draw = kernels.function("tern_draw", ctypes.c_int, _POINTER, *[_INT] * 3, *[_POINTER] * 7)

    def mask(self, logits: Tensor, rows: NDArray[np.int64], bits: NDArray[np.uint8]) -> None:
        """Rows of float32 logits [n, vocab], in place: what has no bit in uint8[len(rows), row_bytes], the
        lowest of a byte first, becomes -inf."""
        assert logits.stride(1) == 1
        assert bits.flags.c_contiguous
        assert rows.flags.c_contiguous
        shape = logits.shape[1], logits.stride(0), len(rows)
        self._mask(logits.data_ptr(), *shape, rows.ctypes.data, bits.ctypes.data, bits.shape[1])

    def choose(self, logits: Tensor) -> tuple[Tensor, NDArray[np.bool_]]:
        """float32 logits [n, vocab] → the first of the likeliest int64[n]; whether all are finite."""
        logits = _in_rows(logits)
        rows, vocab_size = logits.shape
        tokens, finite = torch.empty(rows, dtype=torch.int64), np.empty(rows, dtype=np.bool_)
        self._choose(
            logits.data_ptr(), rows, vocab_size, logits.stride(0), tokens.data_ptr(), finite.ctypes.data
        )
        return tokens, finite

    def draw(
        self, logits: Tensor, rows: NDArray[np.int64], limits: Limits, uniform: NDArray[np.float64]
    ) -> Tensor:
        """Of some rows of the logits, at a number in [0, 1) for each → int64[n]. Order as everywhere:
        temperature, top-k, top-p (of what top-k left), min-p; the inverse of the cumulative distribution."""
        logits = _in_rows(logits)
        tokens = torch.empty(len(rows), dtype=torch.int64)
        columns = (rows, limits.temperature, limits.top_k, limits.top_p, limits.min_p, uniform)
        assert all(column.flags.c_contiguous and len(column) == len(rows) for column in columns)
        pointers = [column.ctypes.data for column in columns]
        shape = logits.shape[1], logits.stride(0), len(rows)
        if self._draw(logits.data_ptr(), *shape, *pointers, tokens.data_ptr()):
            raise MemoryError("no memory to sample")
        return tokens


def _in_rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()
