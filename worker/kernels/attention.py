"""Attention over the paged KV cache: this step's keys and values are written, then all are read.

One layer's cache is as in paged_kv.py. A step's tokens lie flat, sequence after sequence, those with a single
token first:

    tokens   d0 d1 d2 │ p0 p0 p0 p0 │ p1 p1          rows 0…2 decode, rows 3, 4 prefill
    query_start 0  1  2  3            7     9

This is the torch reference. It serves where there are no kernels in C (native_attention.py), which need none
of the index tensors below. It computes in float32 whatever the cache's type.
Decode rows are gathered block-wise in chunks that stay inside the processor's cache, and multiplied as
one batch per chunk. Prefill rows from their sequences' start that are of one length are one batch, too; a
row behind a prefix reads that back through the block table, alone. A device with kernels of its own needs
the same three things: `AttentionPlanner.plan`, `write_kv`, `paged_attention`.

A layer with a sliding window sees the last `window` tokens, the token itself included, and reads only the
blocks that these lie in; its table may lack all others. Layers of one KV group (kv_layout.py) share a table
and a plan; a window that nobody has outgrown is none:

    window 5, blocks of 4      · · · ·│· ■ ■ ■│■ ■     position 9 sees 5 … 9, and reads 2 blocks of 3

What lies in a block behind a sequence's last token is multiplied by a weight of zero here, so it must be
finite: whoever grants a block blanks it first (kv_cache.py). The kernels in C do not read it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..kv_layout import Window
from .cpu.library import Library
from .native_attention import NativeAttention, NativeStep
from .paged_kv import PagedKV

Ints = NDArray[np.int64]
CHUNK_BYTES = 2 << 20
"""Keys and values gathered at once. 2 MiB stays in L2 and L3: 128 rows of 208 tokens take 1.1 ms per
layer in chunks against 1.7 ms at once (one Zen 5 core)."""
MASK_ELEMENTS = 1 << 20
"""A long prefill behind a prefix is computed in stretches whose mask has at most this many elements."""
LEAST_STRETCH = 128
"""A stretch with a window reads the window before it again, so it is as long as the window, or this."""


class KVShape(NamedTuple):
    """Of one layer's cache."""

    num_blocks: int
    num_kv_heads: int
    block_size: int
    head_dim: int


@dataclass(slots=True)
class StepLayout:
    """Which sequences a step computes, as far as attention is concerned."""

    query_start: Ints
    """[n + 1] first token of each row"""
    token_rows: Ints
    """[tokens] row of each token"""
    positions: Ints
    """[tokens] of each token in its sequence"""
    context_lens: Ints
    """[n] tokens of each sequence, those of this step included"""
    num_decodes: int
    """The first rows, with one token each."""


@dataclass(slots=True)
class DecodeChunk:
    """Rows begin … end, each with one query."""

    begin: int
    end: int
    blocks: Tensor
    """int64[2 * rows * num_kv_heads * width]: rows of the cache seen as […, block_size * head_dim]"""
    mask: Tensor
    """float32[rows * num_kv_heads, 1, width * block_size]: 0, or -inf for what is not seen"""
    gathered: Tensor | None
    """Scratch for the blocks; none for those of a quantized cache."""


@dataclass(slots=True)
class PrefillGroup:
    """Tokens begin … end: `num_rows` sequences from their start, of as many tokens each, all seen."""

    begin: int
    end: int
    num_rows: int
    blocks: Tensor
    """As DecodeChunk's"""


@dataclass(slots=True)
class PrefillStretch:
    """Tokens begin … end of one sequence that do not all see the same first key."""

    begin: int
    end: int
    num_keys: int
    """From the start of the first block to the last token's own."""
    blocks: Tensor
    mask: Tensor
    """bool[tokens, num_keys]"""


class AttentionMetadata:
    """A step's layout, the same for all layers of one KV group. What only one way to compute needs is made
    when it is first asked for."""

    def __init__(
        self, planner: "AttentionPlanner", layout: StepLayout, tables: NDArray[np.int32], window: Window
    ) -> None:
        self._planner, self._layout, self._tables, self._window = planner, layout, tables, window
        self.attend = planner.native
        """In C, or None"""

    @cached_property
    def native(self) -> NativeStep:
        layout = self._layout
        return NativeStep(layout.query_start, layout.token_rows, layout.positions, self._tables, self._window)

    @cached_property
    def kv_rows(self) -> Tensor:
        """int64[tokens, 2 * num_kv_heads]: where each token's keys and values go, in rows of head_dim"""
        return self._planner.kv_rows(self._layout, self._tables)

    @cached_property
    def decode_chunks(self) -> list[DecodeChunk]:
        lens = self._layout.context_lens[: self._layout.num_decodes]
        return self._planner.decode_chunks(lens, self._tables, self._window)

    @cached_property
    def prefill_groups(self) -> list[PrefillGroup]:
        return self._planner.prefill_groups(self._alike, self._layout, self._tables)

    @cached_property
    def prefill_stretches(self) -> list[PrefillStretch]:
        alone = np.flatnonzero(~self._alike)
        return [
            stretch
            for i in alone[alone >= self._layout.num_decodes].tolist()
            for stretch in self._planner.stretches(self._layout, i, self._tables[i], self._window)
        ]

    @cached_property
    def _alike(self) -> NDArray[np.bool_]:
        """Rows that see all from their start."""
        counts = np.diff(self._layout.query_start)
        alike: NDArray[np.bool_] = counts == self._layout.context_lens
        return alike if self._window is None else alike & (counts <= self._window)


StepMetadata = Sequence[AttentionMetadata]
"""Of each layer."""


class AttentionPlanner:
    """Turns a step's layout into index tensors, once for all layers of a group. Owns the scratch memory."""

    def __init__(
        self,
        shape: KVShape,
        dtype: torch.dtype,
        windows: Sequence[Window] = (None,),
        kernels: Library | None = None,
        *,
        stored: torch.dtype | None = None,
    ) -> None:
        """`dtype` of queries; `stored`: of the cache, if that is another. `windows`: of each KV group."""
        self.shape, self._quantized = shape, stored not in (None, dtype)
        usable = kernels is not None and NativeAttention.supports(shape.head_dim, dtype, stored)
        self.native = NativeAttention(kernels) if kernels is not None and usable else None
        self.windows = windows
        blocks, heads, size, dim = shape
        self._heads = np.arange(heads, dtype=np.int64)
        sides = np.arange(2, dtype=np.int64)
        self._head_rows = (sides[:, None] * blocks * heads + self._heads).reshape(-1) * size
        self._block_sides = (sides * blocks)[:, None, None, None]
        self._block_elements = size * dim
        self._chunk_blocks = max(CHUNK_BYTES // (2 * heads * size * dim * dtype.itemsize), 1)
        self._scratch = torch.empty(0, dtype=dtype)
        self._steps = torch.arange(0)

    def plan(self, layout: StepLayout, block_tables: NDArray[np.int32]) -> list[AttentionMetadata]:
        """One for each group. block_tables [groups, n, width], `width` enough for the longest row; places
        that are not read hold any block."""
        longest = int(layout.context_lens.max())
        return [
            AttentionMetadata(
                self, layout, tables, window if window is not None and window < longest else None
            )
            for window, tables in zip(self.windows, block_tables, strict=True)
        ]

    @property
    def needs_blank_blocks(self) -> bool:
        """Torch multiplies what is not seen by zero, and it must be finite; in C it is not read."""
        return self.native is None

    def release(self) -> None:
        """Give the scratch memory back."""
        self._scratch = torch.empty(0, dtype=self._scratch.dtype)

    def kv_rows(self, layout: StepLayout, tables: NDArray[np.int32]) -> Tensor:
        size, position = self.shape.block_size, layout.positions
        block = tables[layout.token_rows, position // size].astype(np.int64)
        row = block * (self.shape.num_kv_heads * size) + position % size
        return torch.from_numpy(row[:, None] + self._head_rows)

    def decode_chunks(self, lens: Ints, tables: NDArray[np.int32], window: Window) -> list[DecodeChunk]:
        """Rows are cut so that a chunk's blocks fit CHUNK_BYTES; rows of like length belong together."""
        chunks = []
        begin, size = 0, self.shape.block_size
        unseen = np.zeros_like(lens)
        if window is not None and len(lens):
            left = np.maximum(lens - window, 0)
            first_blocks, unseen = np.divmod(left, size)
            lens = lens - first_blocks * size  # counted from the first block that is read
            columns = first_blocks[:, None] + np.arange(-(-int(lens.max()) // size))
            tables = np.take_along_axis(tables[: len(lens)], np.minimum(columns, tables.shape[1] - 1), axis=1)
        widths = -(-lens // size)
        while begin < len(widths):
            # The first row is usually the longest, and decides how many rows fit.
            rows = max(self._chunk_blocks // int(widths[begin]), 1)
            end = min(begin + rows, len(widths))
            width = int(widths[begin:end].max())
            blocks = self._block_rows(tables[begin:end, :width])
            mask = self._mask(lens[begin:end], width * size)
            if window is not None:
                self._hide(mask, unseen[begin:end])
            chunks.append(DecodeChunk(begin, end, blocks, mask, self._scratch_for(blocks)))
            begin = end
        return chunks

    def _mask(self, context_lens: Ints, length: int) -> Tensor:
        if len(self._steps) < length:
            self._steps = torch.arange(2 * length)
        lens = torch.from_numpy(context_lens.repeat(self.shape.num_kv_heads))
        mask = torch.zeros(len(lens), 1, length)
        return mask.masked_fill_(self._steps[:length] >= lens[:, None, None], -math.inf)

    def _hide(self, mask: Tensor, unseen: Ints) -> None:
        """The first keys of each row, which lie before its window."""
        counts = torch.from_numpy(unseen.repeat(self.shape.num_kv_heads))
        mask.masked_fill_(self._steps[: mask.shape[2]] < counts[:, None, None], -math.inf)

    def _block_rows(self, blocks: NDArray[np.int32]) -> Tensor:
        """[rows, width] block ids → [2, rows, heads, width] rows of block_size * head_dim, flat."""
        heads = self.shape.num_kv_heads
        rows = (blocks[None, :, None, :] + self._block_sides) * heads + self._heads[:, None]
        return torch.from_numpy(rows.reshape(-1))

    def _scratch_for(self, blocks: Tensor) -> Tensor | None:
        if self._quantized:
            return None
        needed = len(blocks) * self._block_elements
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=self._scratch.dtype)
        return self._scratch[:needed].view(len(blocks), self._block_elements)

    def prefill_groups(
        self, alike: NDArray[np.bool_], layout: StepLayout, tables: NDArray[np.int32]
    ) -> list[PrefillGroup]:
        """Neighbours of one length that see all from their start, as many as fit CHUNK_BYTES."""
        counts = np.diff(layout.query_start)
        groups = []
        begin = layout.num_decodes
        while begin < len(counts):
            end = begin + 1
            if alike[begin]:
                width = -(-int(counts[begin]) // self.shape.block_size)
                most = min(begin + max(self._chunk_blocks // width, 1), len(counts))
                while end < most and counts[end] == counts[begin] and alike[end]:
                    end += 1
                tokens = int(layout.query_start[begin]), int(layout.query_start[end])
                groups.append(PrefillGroup(*tokens, end - begin, self._block_rows(tables[begin:end, :width])))
            begin = end
        return groups

    def stretches(
        self, layout: StepLayout, row: int, table: NDArray[np.int32], window: Window
    ) -> list[PrefillStretch]:
        begin, end = int(layout.query_start[row]), int(layout.query_start[row + 1])
        context_len, size = int(layout.context_lens[row]), self.shape.block_size
        if window is None:
            window = context_len
            length = max(MASK_ELEMENTS // context_len, 1)
        else:
            most = max(window, LEAST_STRETCH)
            length = max(min(MASK_ELEMENTS // (2 * most), most), 1)
        stretches = []
        for start in range(begin, end, length):
            stop = min(start + length, end)
            position, seen = context_len - (end - start), context_len - (end - stop)
            first_block = max(position + 1 - window, 0) // size
            num_keys, own = seen - first_block * size, position - first_block * size
            blocks = self._block_rows(table[None, first_block : -(-seen // size)])
            mask = torch.ones(stop - start, num_keys, dtype=torch.bool)
            mask.tril_(own).triu_(own + 1 - window)
            stretches.append(PrefillStretch(start, stop, num_keys, blocks, mask))
        return stretches


def write_kv(new: Tensor, kv: PagedKV, metadata: AttentionMetadata) -> None:
    """[tokens, 2 * num_kv_heads, head_dim] (keys' heads, then values') → cache, in place."""
    kv.write(new, metadata.kv_rows)


def paged_attention(query: Tensor, kv: PagedKV, metadata: AttentionMetadata, scale: float) -> Tensor:
    """query [tokens, num_heads, head_dim] → [tokens, num_heads * head_dim]"""
    if metadata.attend is not None:
        return metadata.attend(query, kv, metadata.native, scale)
    tokens, num_heads, dim = query.shape
    heads = kv.cache.shape[2]
    out = torch.empty(tokens, num_heads * dim, dtype=query.dtype)
    for chunk in metadata.decode_chunks:
        rows = chunk.end - chunk.begin
        keys, values = kv.gather(chunk.blocks, chunk.gathered).view(2, rows * heads, -1, dim).float()
        grouped = query[chunk.begin : chunk.end].reshape(rows * heads, num_heads // heads, dim).float()
        scores = torch.baddbmm(chunk.mask, grouped, keys.transpose(1, 2), alpha=scale)
        mixed = torch.bmm(scores.softmax(-1), values)
        out[chunk.begin : chunk.end] = mixed.view(rows, -1)
    for group in metadata.prefill_groups:
        queries = query[group.begin : group.end].view(group.num_rows, -1, num_heads, dim)
        both = kv.gather(group.blocks).view(2, group.num_rows, heads, -1, dim).to(query.dtype)
        mixed = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            both[0, :, :, : queries.shape[1]],
            both[1, :, :, : queries.shape[1]],
            is_causal=True,
            scale=scale,
            enable_gqa=num_heads != heads,
        )
        out[group.begin : group.end].view(*queries.shape[:2], num_heads, dim).copy_(mixed.transpose(1, 2))
    for stretch in metadata.prefill_stretches:
        both = kv.gather(stretch.blocks).view(2, 1, heads, -1, dim)[:, :, :, : stretch.num_keys]
        keys, values = both.to(query.dtype)
        mixed = F.scaled_dot_product_attention(
            query[stretch.begin : stretch.end].transpose(0, 1).unsqueeze(0),
            keys,
            values,
            attn_mask=stretch.mask,
            scale=scale,
            enable_gqa=num_heads != heads,
        )
        out[stretch.begin : stretch.end] = mixed.squeeze(0).transpose(0, 1).flatten(1)
    return out
