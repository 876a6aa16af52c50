"""Both ends of a decode step, on the device: from the slots that it computes to its inputs, and from what it
sampled back to the slots. So step after step runs without the host, and all of it lies in one captured graph.

    begin   row ─ its slot ─▶ newest token · position · context length · place of its KV · its block tables
    end     token of the row ─▶ newest token of the slot · one more is computed · one more in its counts

State is kept by slot (worker/gpu/state.py); rows are this step's, in any order. A row whose slot is NO_SLOT
only pads the step: its context is empty, it writes to the null block, and it changes no state.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The inputs of a decode step; made once for the largest, and never reallocated."""

    slots: Tensor
    """int32 [rows], of the state; NO_SLOT: the row only pads"""
    token_ids: Tensor
    """int64 [rows]"""
    positions: Tensor
    """int64 [rows], of these tokens"""
    context_lens: Tensor
    """int32 [rows], these tokens included; 0: the row only pads"""
    kv_slots: Tensor
    """int64 [groups, rows]: where their keys and values go"""
    block_tables: Tensor
    """int32 [groups, rows, width], as far as the context reaches"""

    @classmethod
    def empty(cls, groups: int, rows: int, width: int, device: torch.device) -> Self:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            slots=torch.full((rows,), NO_SLOT, dtype=torch.int32, device=device),
            token_ids=zeros(rows, dtype=torch.int64),
            positions=zeros(rows, dtype=torch.int64),
            context_lens=zeros(rows, dtype=torch.int32),
            kv_slots=zeros(groups, rows, dtype=torch.int64),
            block_tables=zeros(groups, rows, width, dtype=torch.int32),
        )


@triton.jit
def _begin(
    slots_ptr,  # int32 [rows]
    newest_ptr,  # int64 [all slots]
    computed_ptr,  # int32 [all slots]
    tables_ptr,  # int32 [groups, all slots, width]
    token_ids_ptr,  # out int64 [rows]
    positions_ptr,  # out int64 [rows]
    context_lens_ptr,  # out int32 [rows]
    kv_slots_ptr,  # out int64 [groups, most rows]
    row_tables_ptr,  # out int32 [groups, most rows, width]
    all_slots,
    most_rows,
    width,
    null_block,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    row, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    real = slot >= 0
    slot = tl.maximum(slot, 0)
    position = tl.where(real, tl.load(computed_ptr + slot), 0)
    token = tl.where(real, tl.load(newest_ptr + slot), 0)
    context_len = tl.where(real, position + 1, 0)
    if group == 0:
        tl.store(token_ids_ptr + row, token)
        tl.store(positions_ptr + row, position.to(tl.int64))
        tl.store(context_lens_ptr + row, context_len)
    table_ptr = tables_ptr + (group * all_slots + slot) * width
    block = tl.where(real, tl.load(table_ptr + position // BLOCK_SIZE), null_block)
    kv_slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    tl.store(kv_slots_ptr + group * most_rows + row, kv_slot)
    row_table_ptr = row_tables_ptr + (group * most_rows + row) * width
    num_blocks = (context_len + BLOCK_SIZE - 1) // BLOCK_SIZE
    for start in range(0, num_blocks, TILE):
        places = start + tl.arange(0, TILE)
        there = places < num_blocks
        tl.store(row_table_ptr + places, tl.load(table_ptr + places, mask=there, other=0), mask=there)


@triton.jit(do_not_specialize=["rows"])
def _end(
    slots_ptr,  # int32 [rows]
    sampled_ptr,  # int64 [rows]; negative: the row came to nothing
    newest_ptr,  # int64 [all slots]
    computed_ptr,  # int32 [all slots]
    counts_ptr,  # int32 [all slots, vocab]
    rows,
    vocab,
    ADVANCE: tl.constexpr,  # whether a token is computed with it
    TILE: tl.constexpr,
):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    slot = tl.load(slots_ptr + row, mask=row < rows, other=-1)
    real = slot >= 0
    token = tl.maximum(tl.load(sampled_ptr + row, mask=real, other=0), 0)  # any token will do to go on with
    tl.store(newest_ptr + slot, token, mask=real)
    if ADVANCE:
        tl.store(computed_ptr + slot, tl.load(computed_ptr + slot, mask=real, other=0) + 1, mask=real)
    count_ptr = counts_ptr + slot.to(tl.int64) * vocab + token
    tl.store(count_ptr, tl.load(count_ptr, mask=real, other=0) + 1, mask=real)


def begin(
    into: DecodeRows,
    rows: int,
    newest: Tensor,
    num_computed: Tensor,
    tables: Tensor,
    block_size: int,
    null_block: int,
) -> None:
    """Fill the first `rows` of `into` from its slots.

    newest int64 [slots], num_computed int32 [slots], tables int32 [groups, slots, width].
    """
    groups, slots, width = tables.shape
    _begin[(rows, groups)](
        into.slots, newest, num_computed, tables,
        into.token_ids, into.positions, into.context_lens, into.kv_slots, into.block_tables,
        slots, len(into.slots), width, null_block, BLOCK_SIZE=block_size, TILE=256, num_warps=4,
    )  # fmt: skip


def end(
    slots: Tensor, sampled: Tensor, newest: Tensor, num_computed: Tensor, counts: Tensor, *, advance: bool
) -> None:
    """slots int32 [rows], each but NO_SLOT once; sampled int64 [rows]; counts int32 [slots, vocab].

    `advance`: the sampled row also computed one token, as all rows of a decode step do.
    """
    rows = len(slots)
    _end[(triton.cdiv(rows, 128),)](
        slots, sampled, newest, num_computed, counts, rows, counts.shape[1], ADVANCE=advance, TILE=128
    )


def begin_reference(
    into: DecodeRows,
    rows: int,
    newest: Tensor,
    num_computed: Tensor,
    tables: Tensor,
    block_size: int,
    null_block: int,
) -> None:
    for row, slot in enumerate(into.slots[:rows].tolist()):
        real = slot != NO_SLOT
        position = int(num_computed[slot]) if real else 0
        into.token_ids[row] = newest[slot] if real else 0
        into.positions[row], into.context_lens[row] = position, position + 1 if real else 0
        for group, table in enumerate(tables):
            block = int(table[slot, position // block_size]) if real else null_block
            into.kv_slots[group, row] = block * block_size + position % block_size
            length = -(-(position + 1) // block_size) if real else 0
            into.block_tables[group, row, :length] = table[slot, :length]


def end_reference(
    slots: Tensor, sampled: Tensor, newest: Tensor, num_computed: Tensor, counts: Tensor, *, advance: bool
) -> None:
    for slot, token in zip(slots.tolist(), sampled.clamp(min=0).tolist(), strict=True):
        if slot != NO_SLOT:
            newest[slot] = token
            num_computed[slot] += int(advance)
            counts[slot, token] += 1
