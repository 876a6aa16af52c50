"""The resident batch: what the worker remembers of each sequence, edited by step plans.

Per slot: the known tokens, how many of them are computed, a block table of each KV group, and the newest
token. Sequences enter whole, then only changes arrive. Knows no model and no sampling parameters.

A step's rows are put into an order of our own, so that attention finds like next to like:

    rows    generating (1 token, known only to the device), longest first │ chunks of known tokens
    tokens  one each                                                      │ as many as scheduled

A plan that breaks the rules raises InternalError before anything is computed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import InternalError
from protocol.messages import EngineFacts
from protocol.steps import SequenceStart, StepPlan

Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]


@dataclass(slots=True)
class Rows:
    """The sequences of one step in our order. Valid for the next step too if it schedules the same."""

    slots: Ints
    plan_rows: Ints
    """Where each row stands in the plan and in its result."""
    counts: Ints
    num_decodes: int
    query_start: Ints
    """[n + 1] first token of each row"""
    token_rows: Ints
    """[tokens] row of each token"""
    sampling: Ints
    """Rows that sample."""
    sampling_slots: Ints
    slots_on_device: Tensor
    """Of the rows that sample."""
    last_tokens: Tensor | None
    """Where in the step's tokens each sampling row ends; None when every token is such an end."""


class Batch:
    def __init__(self, facts: EngineFacts) -> None:
        """The block behind the usable ones is the null block of empty places."""
        max_num_seqs = facts.max_num_seqs
        self.max_model_len = facts.max_model_len
        self.block_size = facts.block_size
        self.null_block = facts.num_blocks
        self.vocab_size = facts.vocab_size
        self.groups = facts.kv_groups
        shape = len(self.groups), max_num_seqs, -(-facts.max_model_len // facts.block_size)
        self.block_tables: Int32s = np.full(shape, self.null_block, dtype=np.int32)
        """[groups, slots, width]"""
        self.num_blocks: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        """Of each of a slot's tables."""
        self.num_tokens: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        """Known: sent by the engine core or sampled here."""
        self.num_computed: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        self.occupied = np.zeros(max_num_seqs, dtype=np.bool_)
        self.newest = torch.zeros(max_num_seqs, dtype=torch.int64)
        """Newest token of each slot. A device keeps its own: a step may compute it before the host has seen
        it."""
        self._sent: list[Int32s | None] = [None] * max_num_seqs
        """Token ids as they came; newer ones exist only on the device and are computed one by one."""
        self._arranged: tuple[bytes, bytes, Rows] | None = None

    def reset(self) -> None:
        """Forget every sequence."""
        self.occupied[:] = False
        self._sent = [None] * len(self._sent)
        self._arranged = None

    # ── editing ─────────────────────────────────────────────────────────────────────────────────

    def edit(self, plan: StepPlan) -> Int32s:
        """Releases, starts, grown tables, in this order. Returns the blocks that were granted empty."""
        if plan.released or plan.started:
            self._arranged = None
        if plan.released:
            self._release(_ids(plan.released))
        granted = [self._start(start) for start in plan.started]
        if plan.grown_slots or plan.grown_blocks:
            granted.append(self._grow(_ids(plan.grown_slots), _ids(plan.grown_blocks)))
        return np.concatenate(granted) if granted else _NONE

    def _release(self, slots: Int32s) -> None:
        self._check_slots(slots, "releases")
        self.occupied[slots] = False
        for slot in slots.tolist():
            self._sent[slot] = None

    def _start(self, start: SequenceStart) -> Int32s:
        slot, tokens, tables = start.slot, _ids(start.token_ids), _ids(start.block_tables)
        computed, known = start.num_computed_tokens, len(tokens)
        if not 0 <= slot < len(self.occupied) or self.occupied[slot]:
            raise InternalError(
                f"the plan starts slot {slot}, which is taken or not one of {len(self.occupied)}"
            )
        if not 0 <= computed < known <= self.max_model_len or not 1 <= start.num_prompt_tokens <= known:
            raise InternalError(
                f"the plan starts slot {slot} with {known} tokens, {start.num_prompt_tokens} of them prompt "
                f"and {computed} computed; the longest sequence is {self.max_model_len}"
            )
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise InternalError(
                f"the plan starts slot {slot} with a token outside of 0…{self.vocab_size - 1}"
            )
        length, odd = divmod(len(tables), len(self.groups))
        if odd or not computed <= length * self.block_size or length > self.block_tables.shape[2]:
            raise InternalError(
                f"the plan starts slot {slot} with {len(tables)} blocks in {len(self.groups)} tables for "
                f"{computed} tokens"
            )
        tables = tables.reshape(len(self.groups), length)
        self.block_tables[:, slot] = self.null_block
        for group, table, ours in zip(self.groups, tables, self.block_tables[:, slot], strict=True):
            first = group.first_block(computed, self.block_size)
            self._check_blocks(table[first:])
            ours[first:length] = table[first:]
        self.num_blocks[slot] = length
        self.num_tokens[slot], self.num_computed[slot] = known, computed
        self.num_prompt[slot] = start.num_prompt_tokens
        self.occupied[slot] = True
        self.newest[slot] = int(tokens[-1])
        self._sent[slot] = tokens
        return tables[:, -(-computed // self.block_size) :].reshape(-1)

    def _grow(self, slots: Int32s, blocks: Int32s) -> Int32s:
        if len(slots) * len(self.groups) != len(blocks):
            raise InternalError(f"the plan grows {len(slots)} slots by {len(blocks)} blocks")
        self._check_occupied(slots, "grows")
        self._check_blocks(blocks)
        order = slots.argsort(kind="stable")  # of one slot, in the order given
        slots, rows = slots[order], blocks.reshape(-1, len(self.groups))[order]
        starts = np.flatnonzero(np.concatenate((_FIRST, slots[1:] != slots[:-1])))
        grown, places = slots[starts], self.num_blocks[slots]
        if len(grown) < len(slots):  # some by several blocks
            counts = np.diff(starts, append=len(slots))
            places += np.arange(len(slots)) - starts.repeat(counts)
        if places.max() >= self.block_tables.shape[2]:
            slot = slots[places.argmax()]
            raise InternalError(f"the plan grows slot {slot} beyond {self.block_tables.shape[2]} blocks")
        self.block_tables[:, slots, places] = rows.T
        self.num_blocks[slots] = places + 1  # the last of a slot's is the one that stays
        self._forget_unseen(grown)
        return blocks

    def _forget_unseen(self, slots: Int32s) -> None:
        """Blocks that have left a window may be somebody else's by now."""
        for group, table in zip(self.groups, self.block_tables, strict=True):
            if group.window is not None:
                for slot, computed in zip(slots.tolist(), self.num_computed[slots].tolist(), strict=True):
                    table[slot, : group.first_block(computed, self.block_size)] = self.null_block

    # ── scheduling ──────────────────────────────────────────────────────────────────────────────

    def arrange(self, plan: StepPlan) -> Rows:
        """The scheduled rows. When they are the same generating rows as in the last step, costs nothing."""
        if self._arranged is not None:
            slots, counts, rows = self._arranged
            if plan.scheduled_slots == slots and plan.scheduled_counts == counts:
                self._check_room(rows)
                return rows
        rows = self._arrange(_ids(plan.scheduled_slots), _ids(plan.scheduled_counts))
        self._check_room(rows)
        only_decodes = rows.num_decodes == len(rows.slots)
        self._arranged = (plan.scheduled_slots, plan.scheduled_counts, rows) if only_decodes else None
        return rows

    def _arrange(self, plan_slots: Int32s, plan_counts: Int32s) -> Rows:
        if len(plan_slots) != len(plan_counts) or not len(plan_slots):
            raise InternalError(f"the plan schedules {len(plan_slots)} slots and {len(plan_counts)} counts")
        self._check_slots(plan_slots, "schedules")
        slots, counts = plan_slots.astype(np.int64), plan_counts.astype(np.int64)
        left = self.num_tokens[slots] - self.num_computed[slots]
        if counts.min() < 1 or (counts > left).any():
            wrong = int(np.flatnonzero((counts < 1) | (counts > left))[0])
            raise InternalError(
                f"the plan computes {counts[wrong]} tokens of slot {slots[wrong]}, but {left[wrong]} are left"
            )
        generating = left == 1
        order = np.lexsort((-self.num_tokens[slots], ~generating))
        slots, counts = slots[order], counts[order]
        query_start = np.zeros(len(slots) + 1, dtype=np.int64)
        np.cumsum(counts, out=query_start[1:])
        num_decodes = int(generating.sum())
        sampling = np.flatnonzero(counts == left[order])
        return Rows(
            slots=slots,
            plan_rows=order,
            counts=counts,
            num_decodes=num_decodes,
            query_start=query_start,
            token_rows=np.repeat(np.arange(len(slots)), counts),
            sampling=sampling,
            sampling_slots=slots[sampling],
            slots_on_device=torch.from_numpy(slots[sampling]),
            last_tokens=None
            if num_decodes == len(slots)
            else torch.from_numpy(query_start[1:][sampling] - 1),
        )

    def inputs(self, rows: Rows) -> tuple[Tensor, Ints]:
        """(token ids on the device, positions), each [tokens]."""
        computed = self.num_computed[rows.slots]
        if rows.num_decodes == len(rows.slots):
            return self.newest.index_select(0, rows.slots_on_device), computed
        positions = np.arange(len(rows.token_rows)) + (computed - rows.query_start[:-1])[rows.token_rows]
        known = [
            self.known_tokens(int(slot), int(start), int(start + count))
            for slot, start, count in zip(
                rows.slots[rows.num_decodes :],
                computed[rows.num_decodes :],
                rows.counts[rows.num_decodes :],
                strict=True,
            )
        ]
        generated = self.newest[torch.from_numpy(rows.slots[: rows.num_decodes])]
        return torch.cat((generated, torch.from_numpy(np.concatenate(known)))), positions

    def known_tokens(self, slot: int, start: int, stop: int) -> Ints:
        """Ids that the engine core sent for positions start … stop - 1."""
        sent = self._sent[slot]
        assert sent is not None
        assert stop <= len(sent)
        return sent[start:stop].astype(np.int64)

    def advance(self, rows: Rows, sampled: Tensor | None = None) -> None:
        """The step is computed, or launched: `sampled` are the new tokens of `rows.sampling`, unless these
        live elsewhere."""
        self.num_computed[rows.slots] += rows.counts
        self.num_tokens[rows.sampling_slots] += 1
        if sampled is not None:
            self.newest[rows.slots_on_device] = sampled

    # ── rules ───────────────────────────────────────────────────────────────────────────────────

    def _check_slots(self, slots: Int32s, verb: str) -> None:
        self._check_occupied(slots, verb)
        if len(np.unique(slots)) < len(slots):
            raise InternalError(f"the plan {verb} slots that are doubled: {slots.tolist()}")

    def _check_occupied(self, slots: Int32s, verb: str) -> None:
        inside = slots.min() >= 0 and slots.max() < len(self.occupied)
        if not inside or not self.occupied[slots].all():
            raise InternalError(f"the plan {verb} slots that are empty or out of range: {slots.tolist()}")

    def _check_blocks(self, blocks: Int32s) -> None:
        if len(blocks) and (blocks.min() < 0 or blocks.max() >= self.null_block):
            raise InternalError(
                f"the plan grants blocks outside of 0…{self.null_block - 1}: {blocks.tolist()}"
            )

    def _check_room(self, rows: Rows) -> None:
        ends = self.num_computed[rows.slots] + rows.counts
        short = ends > self.num_blocks[rows.slots] * self.block_size
        if short.any() or ends.max() > self.max_model_len:
            wrong = int(np.flatnonzero(short)[0]) if short.any() else int(ends.argmax())
            slot = int(rows.slots[wrong])
            raise InternalError(
                f"the plan computes slot {slot} up to {ends[wrong]} tokens, but it has "
                f"{self.num_blocks[slot]} blocks of {self.block_size}; sequences end at {self.max_model_len}"
            )


_NONE: Int32s = np.empty(0, dtype=np.int32)
_FIRST = np.ones(1, dtype=np.bool_)


def _ids(column: bytes) -> Int32s:
    return np.frombuffer(column, dtype=np.int32)
