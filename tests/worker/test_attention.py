"""The paged kernels against attention written out, over random layouts."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.kernels import attention
from worker.kernels.attention import (
    AttentionPlanner,
    KVShape,
    StepLayout,
    paged_attention,
    write_kv,
)
from worker.kernels.paged_kv import PagedKV, quantize
from worker.kv_layout import Window

DIM = 8
SCALE = 0.3


def naive(query: Tensor, keys: Tensor, values: Tensor, window: Window) -> Tensor:
    """query [n, heads, dim] are the last n positions of keys, values [length, kv_heads, dim]."""
    count, heads, _ = query.shape
    group = heads // keys.shape[1]
    out = torch.empty_like(query)
    for i in range(count):
        end = len(keys) - count + i + 1
        seen = slice(0 if window is None else max(end - window, 0), end)
        for head in range(heads):
            scores = keys[seen, head // group] @ query[i, head] * SCALE
            out[i, head] = scores.softmax(0) @ values[seen, head // group]
    return out.flatten(1)


class World:
    """Sequences whose earlier KV is in place; everything that is nobody's is NaN."""

    def __init__(
        self,
        decodes: list[int],
        chunks: list[tuple[int, int]],
        heads: int,
        kv_heads: int,
        size: int,
        windows: tuple[Window, ...] = (None,),
    ) -> None:
        chance = np.random.default_rng(len(decodes) * 100 + size)
        torch.manual_seed(1)
        lens = np.array([*decodes, *(total for total, _ in chunks)])
        counts = np.array([1] * len(decodes) + [count for _, count in chunks])
        needed = -(-lens // size)
        width = int(needed.max())
        free = chance.permutation(int(needed.sum()) + 3)
        self.shape = KVShape(len(free) + 1, kv_heads, size, DIM)
        self.cache = torch.full((2, *self.shape), math.nan)
        self.cache[:, -1] = 0  # the null block
        tables = np.full((len(lens), width), len(free), dtype=np.int32)
        self.keys = [torch.randn(n, kv_heads, DIM) for n in lens]
        self.values = [torch.randn(n, kv_heads, DIM) for n in lens]
        for row, count in enumerate(needed):
            tables[row, :count], free = free[:count], free[count:]
            self.cache[:, tables[row, :count]] = 0
            for i in range(int(lens[row] - counts[row])):
                block = tables[row, i // size]
                self.cache[0, block, :, i % size] = self.keys[row][i]
                self.cache[1, block, :, i % size] = self.values[row][i]
        start = np.concatenate(([0], counts.cumsum()))
        token_rows = np.repeat(np.arange(len(lens)), counts)
        positions = np.arange(start[-1]) + (lens - counts - start[:-1])[token_rows]
        self.layout = layout = StepLayout(start, token_rows, positions, lens, len(decodes))
        self.tables = tables
        self.windows = windows
        every = np.stack([tables] * len(windows))
        self.plans = AttentionPlanner(self.shape, torch.float32, windows).plan(layout, every)
        self.metadata = self.plans[0]
        self.queries = [torch.randn(count, heads, DIM) for count in counts]
        self.counts = counts

    def check(self) -> None:
        new = zip(self.keys, self.values, self.counts, strict=True)
        kv = torch.cat([torch.cat((k[-n:], v[-n:]), dim=1) for k, v, n in new])
        write_kv(kv, PagedKV(self.cache), self.metadata)
        for window, metadata in zip(self.windows, self.plans, strict=True):
            out = paged_attention(torch.cat(self.queries), PagedKV(self.cache), metadata, SCALE)
            rows = zip(self.queries, self.keys, self.values, strict=True)
            expected = torch.cat([naive(q, k, v, window) for q, k, v in rows])
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_decodes_and_chunks_together(heads: tuple[int, int], size: int) -> None:
    World([30, 17, 16, 1], [(9, 9), (20, 5), (33, 1)], *heads, size).check()


def test_only_decodes_and_only_chunks() -> None:
    World([5, 4], [], 2, 2, 4).check()
    World([], [(5, 5), (6, 2)], 2, 2, 4).check()


def test_many_chunks_of_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of rows holds few blocks here; one row alone exceeds it."""
    monkeypatch.setattr(attention, "CHUNK_BYTES", 5 * 2 * 2 * 4 * DIM * 4)
    world = World([40, 11, 9, 8, 3, 2, 1], [], 4, 2, 4)
    assert len(world.metadata.decode_chunks) > 3
    world.check()


def test_prompts_of_one_length_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit, neighbours only, and not those behind a prefix."""
    chunks = [(9, 9), (9, 9), (9, 9), (12, 9), (9, 9), (7, 7), (7, 7)]
    world = World([6, 5], chunks, 4, 2, 4)
    assert [(g.begin, g.end, g.num_rows) for g in world.metadata.prefill_groups] == [
        (2, 29, 3),
        (38, 47, 1),
        (47, 61, 2),
    ]
    assert len(world.metadata.prefill_stretches) == 1
    world.check()
    monkeypatch.setattr(attention, "CHUNK_BYTES", 7 * 2 * 2 * 4 * DIM * 4)
    small = World([6, 5], chunks, 4, 2, 4)
    assert [g.num_rows for g in small.metadata.prefill_groups] == [2, 1, 1, 2]
    small.check()


def test_company_changes_no_bit_of_a_prefill() -> None:
    torch.manual_seed(2)
    shape = KVShape(64, 2, 16, 32)
    query, kv = torch.randn(5 * 24, 6, 32), torch.randn(5 * 24, 4, 32)
    found = []
    for rows in ([0, 1, 2, 3, 4], [3]):
        cache = PagedKV(torch.zeros(2, *shape))
        count = len(rows)
        tables = np.arange(2 * count, dtype=np.int32).reshape(count, 2)
        positions = np.tile(np.arange(24), count)
        start, lens = np.arange(count + 1) * 24, np.full(count, 24)
        layout = StepLayout(start, np.repeat(np.arange(count), 24), positions, lens, 0)
        metadata = AttentionPlanner(shape, torch.float32).plan(layout, tables[None])[0]
        tokens = torch.cat([torch.arange(24) + 24 * row for row in rows])
        write_kv(kv[tokens], cache, metadata)
        found.append(paged_attention(query[tokens], cache, metadata, SCALE))
    assert torch.equal(found[0][3 * 24 : 4 * 24], found[1])


def test_long_prefill_behind_a_prefix_is_stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MASK_ELEMENTS", 100)
    world = World([], [(40, 23)], 4, 2, 4)
    assert len(world.metadata.prefill_stretches) > 5
    world.check()


@pytest.mark.parametrize(("stored", "tolerance"), [(torch.int8, 0.05), (torch.float8_e4m3fn, 0.2)])
def test_a_quantized_cache(stored: torch.dtype, tolerance: float) -> None:
    """As near to what is not rounded as 7 bits, or 4, can be; and exactly what its codes say."""
    world = World([30, 17, 16, 1], [(9, 9), (20, 5), (33, 1)], 6, 2, 4)
    codes, scales = quantize(world.cache.nan_to_num(), stored)
    rounded, plain = PagedKV(codes, scales), PagedKV(codes.float() * scales.unsqueeze(-1))
    plans = AttentionPlanner(world.shape, torch.float32, stored=stored).plan(world.layout, world.tables[None])
    rows = zip(world.keys, world.values, world.counts, strict=True)
    kv = torch.cat([torch.cat((k[-n:], v[-n:]), dim=1) for k, v, n in rows])
    write_kv(kv, rounded, plans[0])
    new_codes, new_scales = quantize(kv, stored)
    plain.write(new_codes.float() * new_scales.unsqueeze(-1), plans[0].kv_rows)
    out = paged_attention(torch.cat(world.queries), rounded, plans[0], SCALE)
    assert torch.equal(out, paged_attention(torch.cat(world.queries), plain, world.metadata, SCALE))
    rows = zip(world.queries, world.keys, world.values, strict=True)
    right = torch.cat([naive(q, k, v, None) for q, k, v in rows])
    assert 1e-4 < float((out - right).abs().max()) < tolerance


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("window", [1, 2, 4, 5, 16])
def test_windows(window: int, size: int) -> None:
    """Rows just below, at and above the window's edge and blocks' edges, beside a plan without a window."""
    decodes = [30, 17, 16, window + 1, window, 1]
    chunks = [(window, window), (window + 1, window + 1), (20, 5), (33, 1), (40, 23)]
    World(decodes, chunks, 4, 2, size, (None, window)).check()
    World([window + 1, window], [(window + 1, window + 1)], 4, 2, size, (window,)).check()


def test_windows_in_many_chunks_and_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_BYTES", 3 * 2 * 2 * 4 * DIM * 4)
    monkeypatch.setattr(attention, "LEAST_STRETCH", 4)
    world = World([40, 33, 11, 9, 8, 3, 2, 1], [(50, 50), (44, 30)], 4, 2, 4, (7, 3))
    assert len(world.metadata.decode_chunks) > 3
    assert len(world.metadata.prefill_stretches) > 8
    world.check()


def test_a_window_reads_its_own_blocks_only() -> None:
    world = World([40], [(40, 40), (30, 1)], 2, 1, 4, (6,))
    chunk = world.metadata.decode_chunks[0]
    assert chunk.mask.shape[2] == 2 * 4, "positions 34 … 39 lie in two blocks"
    assert [stretch.num_keys for stretch in world.metadata.prefill_stretches] == [40, 6]


def test_a_window_that_nobody_has_outgrown_is_none() -> None:
    world = World([9, 8], [(9, 9)], 2, 1, 4, (9, None, 10))
    for plan in world.plans:
        assert len(plan.prefill_groups) == 1
        assert plan.decode_chunks[0].blocks.equal(world.metadata.decode_chunks[0].blocks)
