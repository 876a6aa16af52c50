"""DeviceState: what is resident on the device of each sequence, by slot. A plan only edits it, and steps go
on from it: rows of any order find there their newest token, how far they are, and where their KV lies.

    host      Batch (counters, tables, ids that the engine core sent)          knows everything but new tokens
    device    newest · num_computed · tables                                   knows everything that a step
    reads

Both advance with each launch, so they never have to be compared.
"""

import numpy as np
import torch
from torch import Tensor

from protocol.messages import EngineFacts
from protocol.steps import StepPlan

from ..batch import Batch, Int32s, Ints
from .staging import Staging


def aligned(length: int) -> int:
    """Of rows of int32 or longer, so that each row begins where kernels expect it, see staging.py."""
    return -(-length // 16) * 16


class DeviceState:
    def __init__(self, facts: EngineFacts, staging: Staging, device: torch.device) -> None:
        slots, groups = facts.max_num_seqs, len(facts.kv_groups)
        width = aligned(-(-facts.max_model_len // facts.block_size))
        self.newest: Tensor = torch.zeros(slots, dtype=torch.int64, device=device)
        """[slots]: the token that is known last, and computed next by a decode step"""
        self.num_computed: Tensor = torch.zeros(slots, dtype=torch.int32, device=device)
        """[slots]"""
        self.tables: Tensor = torch.full(
            (groups, slots, width), facts.num_blocks, dtype=torch.int32, device=device
        )
        """[groups, slots, width]; places that nothing reads hold any block"""
        self._staging = staging

    def edit(self, plan: StepPlan, batch: Batch) -> None:
        """What the plan changed in the batch, which has been edited, is changed here too."""
        started = np.array([start.slot for start in plan.started], dtype=np.int64)
        if not len(started) and not plan.grown_slots:
            return
        places, blocks = self._table_edits(started, np.frombuffer(plan.grown_slots, dtype=np.int32), batch)
        newest, computed = batch.newest.numpy()[started], batch.num_computed[started].astype(np.int32)
        slots, newest_there, computed_there, places_there, blocks_there = self._staging.put(
            started, newest, computed, places, blocks
        )
        if len(started):
            self.newest.index_copy_(0, slots, newest_there)
            self.num_computed.index_copy_(0, slots, computed_there)
        if len(places):
            self.tables.view(-1).index_copy_(0, places_there, blocks_there)

    def _table_edits(self, started: Ints, grown: Int32s, batch: Batch) -> tuple[Ints, Int32s]:
        """(places in the tables seen flat, each once; the blocks that belong there)"""
        groups, all_slots, width = self.tables.shape
        slots, counts = np.unique(grown, return_counts=True)
        old = ~np.isin(slots, started)
        slots = np.concatenate((started, slots[old]))
        counts = np.concatenate((batch.num_blocks[started], counts[old]))
        each = slots.repeat(counts)
        within = np.arange(len(each)) - (counts.cumsum() - counts).repeat(counts)
        place = (batch.num_blocks[slots] - counts).repeat(counts) + within
        rows = np.arange(groups)[:, None] * all_slots + each
        blocks = batch.block_tables[:, each, place]
        return (rows * width + place).reshape(-1), blocks.reshape(-1)
