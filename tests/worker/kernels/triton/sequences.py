"""Sequences with random keys and values in a shuffled paged cache; what belongs to nobody is NaN."""

import math

import torch
from torch import Tensor

from worker.kernels.paged_kv import PagedKV, quantize


class Sequences:
    def __init__(
        self,
        lens: list[int],
        *,
        num_kv_heads: int,
        head_dim: int,
        block_size: int = 16,
        dtype: torch.dtype,
        device: torch.device,
        stored: torch.dtype | None = None,
    ) -> None:
        """`stored`: type of a quantized cache."""
        needed = [-(-length // block_size) for length in lens]
        order = torch.randperm(sum(needed) + 2)
        shape = (2, len(order), num_kv_heads, block_size, head_dim)
        cache = torch.full(shape, math.nan, dtype=torch.float32)
        tables = torch.full((len(lens), max(*needed, 1)), int(order[-1]), dtype=torch.int32)
        for row, (length, count) in enumerate(zip(lens, needed, strict=True)):
            blocks, order = order[:count], order[count:]
            tables[row, :count] = blocks
            for position in range(length):
                block = int(blocks[position // block_size])
                cache[:, block, :, position % block_size] = torch.randn(2, num_kv_heads, head_dim)
        self.lens = torch.tensor(lens, dtype=torch.int32, device=device)
        self.tables = tables.to(device)
        if stored is None:
            self.kv = PagedKV(cache.to(device, dtype))
        else:
            numbers, scales = quantize(cache.nan_to_num(), stored)
            self.kv = PagedKV(numbers.to(device), scales.to(device))

    def on_cpu(self) -> tuple[PagedKV, Tensor, Tensor]:
        """(cache, block tables, lengths) for a reference."""
        scales = None if self.kv.scales is None else self.kv.scales.cpu()
        return PagedKV(self.kv.cache.cpu(), scales), self.tables.cpu(), self.lens.cpu()
