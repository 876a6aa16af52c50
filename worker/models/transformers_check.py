"""The last word on a model in transformers' code: it must compute with our attention what it does by itself.

Two short sequences, in chunks and in each other's company, through a paged cache of their own, against the
model's plain forward. This catches what a trace on shapes cannot see: positions that are ignored, or tokens
that are mixed elsewhere than in attention.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from protocol.errors import StartupError

from ..kernels.attention import AttentionPlanner, KVShape, StepLayout, StepMetadata
from ..kernels.paged_kv import PagedKV
from ..kv_cache import KVCache
from ..kv_layout import Window, lay_out

_BLOCK_SIZE = 4
_LENGTHS = (11, 6)
_STEPS = (((0, 7), (1, 5)), ((1, 1), (0, 4)))
"""Of each step: (sequence, tokens); single tokens come first, as in a runner's step."""
_TOLERANCE = 1e-3
_COARSE = 0.1
"""Mean difference over the spread of the logits: in float32, and where numbers of 16 bits or fewer are
multiplied. Rounding makes some 1e-6 and 0.02; whatever is mixed up makes 0.3 and more."""

Compute = Callable[[Tensor, Tensor, list[PagedKV], StepMetadata], Tensor]
"""(token ids, positions, caches, metadata) → logits [tokens, vocab]"""


def probes(vocab_size: int) -> list[Tensor]:
    """The sequences' ids."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=draw) for length in _LENGTHS]


def compare(expected: Sequence[Tensor], ours: Sequence[Tensor], *, exact: bool) -> None:
    """Logits of each probe, [tokens, vocab]; `exact`: in float32. Raises StartupError."""
    for theirs, mine in zip(expected, ours, strict=True):
        off = float((mine - theirs).abs().mean() / theirs.std())
        if not off <= (_TOLERANCE if exact else _COARSE):
            raise StartupError(
                "with our attention it does not compute what transformers computes: logits differ by "
                f"{off:.2g} of their spread"
            )


def logits_in_company(
    compute: Compute,
    sequences: Sequence[Tensor],
    heads: tuple[int, int],
    windows: Sequence[Window],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Of each probe. `heads`: KV heads and head_dim; `windows` of the layers."""
    layout = lay_out(windows)
    places = len(layout.groups), len(sequences), -(-max(_LENGTHS) // _BLOCK_SIZE)
    tables = np.arange(math.prod(places), dtype=np.int32).reshape(places)
    cache = KVCache(layout, KVShape(tables.size, heads[0], _BLOCK_SIZE, heads[1]), dtype)
    cache.blank(tables.reshape(-1))
    planner = AttentionPlanner(cache.shape, dtype, [group.window for group in layout.groups])
    done = np.zeros(len(sequences), dtype=np.int64)
    found: list[list[Tensor]] = [[] for _ in sequences]
    for step in _STEPS:
        members, counts = (np.array(column) for column in zip(*step, strict=True))
        query_start = np.concatenate(([0], np.cumsum(counts)))
        rows = np.repeat(np.arange(len(step)), counts)
        positions = np.arange(len(rows)) - (query_start[:-1] - done[members])[rows]
        lens = done[members] + counts
        step_layout = StepLayout(query_start, rows, positions, lens, int((counts == 1).sum()))
        ids = torch.cat([sequences[i][done[i] : done[i] + count] for i, count in step])
        plans = planner.plan(step_layout, tables[:, members])
        metadata = [plans[group] for group in layout.group_of]
        logits = compute(ids, torch.from_numpy(positions), cache.layers, metadata)
        for i, part in zip(members.tolist(), torch.split(logits, counts.tolist()), strict=True):
            found[i].append(part)
        done[members] = lens
    return [torch.cat(parts) for parts in found]
