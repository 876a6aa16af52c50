"""The kernels in C, for tests of what they compute: compiled for this machine, and for lesser ones."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from worker.kernels.attention import AttentionPlanner, KVShape, StepLayout, paged_attention
from worker.kernels.cpu import library
from worker.kernels.cpu.library import Library
from worker.kernels.paged_kv import PagedKV, quantize
from worker.kv_layout import Window


def kernels() -> Library:
    loaded, which = library.load("native", os.environ)
    assert loaded is not None, which
    return loaded


LESSER = {"x86_64": ("x86-64-v3", "x86-64"), "aarch64": ("armv8-a",)}.get(platform.machine(), ())
"""Processors that this one can be: with AVX2, and with none of the newer instructions."""


def built(march: str | None, compiler: str | None = None) -> Library:
    """In the cache, if it is not there yet. None: for this processor; by the compiler that is found."""
    environ = {**os.environ, "CC": compiler} if compiler else os.environ
    return Library(library.build(library.cache_folder(environ), environ, march)[0])


@contextmanager
def threads(loaded: Library, count: int) -> Iterator[None]:
    before = loaded.threads()
    loaded.set_threads(count)
    yield
    loaded.set_threads(before)


class Sequences:
    """Sequences with all of their queries, keys and values, of which steps compute any part."""

    def __init__(
        self,
        lens: Sequence[int],
        *,
        heads: int = 4,
        kv_heads: int = 2,
        dim: int = 64,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype | None = None,
    ) -> None:
        """`stored`: of a quantized cache."""
        torch.manual_seed(sum(lens) + dim)
        self.heads, self.kv_heads, self.dim, self.dtype, self.stored = heads, kv_heads, dim, dtype, stored
        self.queries = [torch.randn(n, heads, dim).to(dtype) for n in lens]
        self.keys = [torch.randn(n, kv_heads, dim).to(dtype) for n in lens]
        self.values = [torch.randn(n, kv_heads, dim).to(dtype) for n in lens]

    def step(
        self,
        chunks: Sequence[tuple[int, int, int]],
        *,
        size: int = 16,
        window: Window = None,
        kernels: Library | None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> list[Tensor]:
        """Of (sequence, first, end) each: what its queries first … end - 1 get. With kernels in C, everything
        that they must not read is NaN: other blocks, places behind the end, blocks before the window."""
        lens = np.array([end for _, _, end in chunks])
        counts = np.array([end - first for _, first, end in chunks])
        needed = -(-lens // size)
        shape = KVShape(int(needed.sum()) + 2, self.kv_heads, size, self.dim)
        nothing = 0.0 if kernels is None else torch.nan
        cache = torch.full((2, *shape), nothing, dtype=self.dtype)
        free = np.random.default_rng(size).permutation(shape.num_blocks).astype(np.int32)
        tables = np.full((len(chunks), int(needed.max())), free[-1], dtype=np.int32)
        for row, (sequence, first, end) in enumerate(chunks):
            tables[row, : needed[row]], free = free[: needed[row]], free[needed[row] :]
            lowest = 0 if window is None or kernels is None else max(first + 1 - window, 0)
            places = torch.arange(lowest, end)
            blocks = torch.from_numpy(tables[row]).long()[places // size]
            cache[0, blocks, :, places % size] = self.keys[sequence][lowest:end]
            cache[1, blocks, :, places % size] = self.values[sequence][lowest:end]
        start = np.concatenate(([0], counts.cumsum()))
        rows = np.repeat(np.arange(len(chunks)), counts)
        positions = np.arange(start[-1]) + (lens - counts - start[:-1])[rows]
        num_decodes = int((counts == 1).sum()) if (np.sort(counts) == counts).all() else 0
        layout = StepLayout(start, rows, positions, lens, num_decodes)
        planner = AttentionPlanner(shape, self.dtype, (window,), kernels, stored=self.stored)
        metadata = planner.plan(layout, tables[None])[0]
        query = torch.cat([self.queries[s][first:end] for s, first, end in chunks])
        scale = self.dim**-0.5
        kv = PagedKV(cache) if self.stored is None else PagedKV(*quantize(cache, self.stored))
        if planner.native is None:
            assert soft_cap is None
            assert sinks is None
            out = paged_attention(query, kv, metadata, scale)
        else:
            out = planner.native(query, kv, metadata.native, scale, soft_cap, sinks)
        return list(torch.split(out, counts.tolist()))
