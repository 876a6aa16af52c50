"""The paged KV cache of one rank: how many blocks fit, and their memory. Knows no sequences.

    tensor [num_places, 2 (keys, values), num_blocks + 1, num_kv_heads, block_size, head_dim]
    scales [num_places, 2, num_blocks + 1, num_kv_heads, block_size]               where it is quantized

A block belongs to one KV group at a time, and has a place for each of that group's layers (kv_layout.py). The
block behind the last is the null block: always zero, it fills unused places of block tables.
Memory is touched when a block is granted, not before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import OutOfMemory, StartupError
from protocol.kv_groups import KVGroup, blocks_of, longest
from protocol.options import CacheOptions

from .kernels.attention import KVShape
from .kernels.cpu.library import Library
from .kernels.device import DeviceKernels
from .kernels.native_attention import MOST_INT8_DIM, NativeAttention
from .kernels.paged_kv import LIMITS, PagedKV, dtype_of
from .kv_layout import KVLayout
from .memory import set_aside


class KVCache:
    def __init__(self, layout: KVLayout, shape: KVShape, dtype: torch.dtype) -> None:
        """`shape.num_blocks` counts the usable blocks; `dtype` as it is stored."""
        self.null_block = shape.num_blocks
        self.shape = shape._replace(num_blocks=shape.num_blocks + 1)
        self.tensor = torch.empty(layout.num_places, 2, *self.shape, dtype=dtype)
        self.scales: Tensor | None = None
        if dtype in LIMITS:
            self.scales = torch.empty(self.tensor.shape[:-1])
        self.layers = [
            PagedKV(self.tensor[place], None if self.scales is None else self.scales[place])
            for place in layout.place_of
        ]
        self.blank(np.array([self.null_block]))

    def blank(self, blocks: NDArray[np.int32]) -> None:
        """Zero blocks that are granted, for torch's kernels: what a failed sequence left may be NaN."""
        where = torch.from_numpy(blocks.astype(np.int64)).to(self.tensor.device)
        if self.scales is None:
            self.tensor.index_fill_(2, where, 0)
        else:
            self.tensor.view(torch.uint8).index_fill_(2, where, 0)
            self.scales.index_fill_(2, where, 0)

    def spoil(self, blocks: Sequence[int]) -> None:
        """NaN into these blocks, in all layers, for tests of what follows."""
        held = self.tensor if self.scales is None else self.scales
        held[:, :, list(blocks)] = math.nan


def stored_dtype(
    wanted: str, dtype: torch.dtype, head_dim: int, kernels: Library | None, device: DeviceKernels | None
) -> torch.dtype:
    """Of the cache of a model that computes in `dtype`, by --kv-cache-dtype. Raises StartupError for what has
    no kernel."""
    stored = dtype_of(wanted, dtype)
    if device is not None:
        device.check_cache(stored)
    elif (
        kernels is not None
        and NativeAttention.supports(head_dim, dtype)
        and not NativeAttention.supports(head_dim, dtype, stored)
    ):
        raise StartupError(
            f"--kv-cache-dtype {wanted}: the kernels in C have int8, for heads of up to {MOST_INT8_DIM} "
            f"numbers; this model's have {head_dim}",
            hint="use --kv-cache-dtype int8 or auto, or --cpu-kernels torch, which is slower",
        )
    return stored


@dataclass(frozen=True)
class KVBudget:
    """What decides the number of blocks."""

    options: CacheOptions
    groups: tuple[KVGroup, ...]
    block_bytes: int
    """On this rank."""
    max_num_seqs: int
    chunk: int
    """Most tokens of one request in one step."""
    model_len: int
    """Longest sequence that the model itself allows."""
    wanted_len: int
    """--max-model-len, or 0."""
    available_bytes: int
    """Memory that this rank may still take."""
    for_kv: Callable[[int], int] = set_aside
    """What of it, when no size is given."""


def fit(budget: KVBudget) -> tuple[int, int]:
    """(number of blocks, longest sequence). Raises OutOfMemory or StartupError, saying what would fit."""
    if budget.wanted_len > budget.model_len:
        raise StartupError(
            f"--max-model-len {budget.wanted_len} is longer than the model's {budget.model_len} positions",
            hint=f"use at most {budget.model_len}, or leave it out",
        )
    groups, size = budget.groups, budget.options.block_size
    limit = budget.wanted_len or budget.model_len
    num_blocks, source = _affordable(budget, limit)
    if num_blocks < len(groups):
        block = len(groups) * budget.block_bytes
        raise OutOfMemory(
            f"not one KV block fits: a block of {size} tokens takes {_mib(block)}, {source}",
            hint=f"give --kv-cache-memory at least {block} bytes, or lower --block-size",
        )
    fits = longest(groups, num_blocks, limit, budget.chunk, size)
    if budget.wanted_len > fits:
        needed = blocks_of(groups, budget.wanted_len, budget.chunk, size) * budget.block_bytes
        raise OutOfMemory(
            f"one sequence of --max-model-len {budget.wanted_len} needs {_mib(needed)} of KV, {source}",
            hint=f"--max-model-len {fits} would fit, or give --kv-cache-memory {needed}",
        )
    return num_blocks, fits


def _affordable(budget: KVBudget, limit: int) -> tuple[int, str]:
    """(blocks, where the number comes from)"""
    options = budget.options
    if options.num_kv_blocks:
        taken = options.num_kv_blocks * budget.block_bytes
        if taken > budget.available_bytes:
            fits = budget.available_bytes // budget.block_bytes
            raise OutOfMemory(
                f"--num-kv-blocks {options.num_kv_blocks} take {_mib(taken)}, "
                f"but {_mib(budget.available_bytes)} are available",
                hint=f"use at most {fits} blocks",
            )
        return options.num_kv_blocks, f"and --num-kv-blocks is {options.num_kv_blocks}"
    if options.kv_cache_memory:
        if options.kv_cache_memory > budget.available_bytes:
            raise OutOfMemory(
                f"--kv-cache-memory asks for {_mib(options.kv_cache_memory)}, but "
                f"{_mib(budget.available_bytes)} are available",
                hint="lower --kv-cache-memory",
            )
        memory = options.kv_cache_memory
        return memory // budget.block_bytes, f"and --kv-cache-memory is {_mib(memory)}"
    memory = budget.for_kv(budget.available_bytes)
    each = blocks_of(budget.groups, limit, budget.chunk, options.block_size)
    useful = budget.max_num_seqs * each
    share = f"and {_mib(memory)} are set aside of {_mib(budget.available_bytes)} available"
    return min(memory // budget.block_bytes, useful), share


def _mib(number: int) -> str:
    return f"{number / (1 << 20):.1f} MiB"
