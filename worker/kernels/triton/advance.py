"""The inputs of the next decode step from the tokens of this one, on the device: inside a captured graph, so
that step after step runs without the host.

    token_ids ← sampled    positions ← positions + 1    context_lens ← context_lens + 1
    slots     ← place of the next position in the block table

A row whose context_len is 0 only pads the batch: it stays as it is, and writes to the null block. The host
grants blocks ahead and edits the tables between steps; a row beyond its table is the host's mistake, and
writes to the null block, too.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Of each row of a decode step; on the device and never reallocated."""

    token_ids: Tensor
    """int64 [rows]"""
    positions: Tensor
    """int64 [rows], of these tokens"""
    context_lens: Tensor
    """int32 [rows], these tokens included; 0: the row only pads"""
    slots: Tensor
    """int64 [rows]: where their keys and values go"""
    block_tables: Tensor
    """int32 [rows, width]"""

    @classmethod
    def empty(cls, rows: int, width: int, null_slot: int, device: torch.device) -> "DecodeInputs":
        """All rows pad. `null_slot`: a slot of the null block."""
        longs = [torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2)]
        return cls(
            longs[0],
            longs[1],
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.full((rows,), null_slot, dtype=torch.int64, device=device),
            torch.zeros(rows, width, dtype=torch.int32, device=device),
        )

    def first(self, rows: int) -> "DecodeInputs":
        """Views of the first rows."""
        return DecodeInputs(
            self.token_ids[:rows],
            self.positions[:rows],
            self.context_lens[:rows],
            self.slots[:rows],
            self.block_tables[:rows],
        )


@triton.jit
def _advance(
    sampled_ptr,  # int64 [rows]
    token_ids_ptr,  # int64 [rows]
    positions_ptr,  # int64 [rows]
    context_lens_ptr,  # int32 [rows]
    slots_ptr,  # int64 [rows]
    tables_ptr,  # int32 [rows, table_width]
    rows,
    table_width,
    null_slot,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = row < rows
    context_len = tl.load(context_lens_ptr + row, mask=there, other=0)
    real = context_len > 0
    tl.store(token_ids_ptr + row, tl.load(sampled_ptr + row, mask=real, other=0), mask=real)
    tl.store(positions_ptr + row, context_len.to(tl.int64), mask=real)
    tl.store(context_lens_ptr + row, context_len + 1, mask=real)
    place = context_len // BLOCK_SIZE
    granted = real & (place < table_width)
    block = tl.load(tables_ptr + row.to(tl.int64) * table_width + place, mask=granted, other=0)
    slot = block.to(tl.int64) * BLOCK_SIZE + context_len % BLOCK_SIZE
    tl.store(slots_ptr + row, tl.where(granted, slot, null_slot), mask=there)


def advance(inputs: DecodeInputs, sampled: Tensor, block_size: int, null_slot: int) -> None:
    """`sampled` int64 [rows]; the inputs change in place."""
    rows, width = inputs.block_tables.shape
    _advance[(triton.cdiv(rows, 128),)](
        sampled, inputs.token_ids, inputs.positions, inputs.context_lens, inputs.slots, inputs.block_tables,
        rows, width, null_slot, BLOCK_SIZE=block_size, TILE=128,
    )  # fmt: skip


def reference(inputs: DecodeInputs, sampled: Tensor, block_size: int, null_slot: int) -> None:
    for row, length in enumerate(inputs.context_lens.tolist()):
        inputs.slots[row] = null_slot
        if length:
            inputs.token_ids[row], inputs.positions[row] = sampled[row], length
            inputs.context_lens[row] = length + 1
            if length // block_size < inputs.block_tables.shape[1]:
                block = inputs.block_tables[row, length // block_size]
                inputs.slots[row] = block * block_size + length % block_size
