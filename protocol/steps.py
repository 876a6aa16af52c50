"""Engine core ↔ worker group. A plan edits the worker's resident batch and says what to compute.

The engine core binds a ROUTER; the leader (rank 0) of the group connects a DEALER and forwards the
same bytes to the other ranks before it starts, so that all ranks see every plan or none does.
Plans are executed strictly in the order sent; within one plan: releases, then starts, then grown
block tables, then the scheduled tokens. All KV of a plan is written before any of it is read.
"""

from typing import Annotated

from msgspec import Meta, Struct

from .bounds import MAX_ENTRIES, Column, Count, Epoch, Label, Prose, TableColumn, Vector, WideColumn
from .messages import EngineFacts, LogprobBlock
from .sampling import SamplingParams

Step = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Slot = Annotated[int, Meta(ge=0, le=(1 << 20))]
"""A row of the worker's resident batch, 0 … max_num_seqs-1. The engine core hands slots out."""


# ── engine core → worker ────────────────────────────────────────────────────────────────────────


class SequenceStart(Struct, frozen=True, array_like=True):
    """A sequence enters the resident batch, whole. It is sent once per (re)start."""

    slot: Slot
    token_ids: WideColumn
    """int32: prompt, then the outputs so far."""
    num_prompt_tokens: Count
    """Penalties and output positions need the border: output position = position - num_prompt_tokens."""
    num_computed_tokens: Count
    """KV of this many tokens is already in the blocks (a prefix-cache hit)."""
    block_tables: WideColumn
    """int32[groups, blocks]: a table of each KV group, all equally long; token i lives in its block
    i // block_size at i % block_size. NO_BLOCK for what has left the group's window, see kv_groups.py."""
    sampling: SamplingParams
    adapter: Label = ""
    """One of EngineFacts.adapters; empty: the model as it is."""
    embed: bool = False
    """Once all of its tokens are computed, a vector is wanted instead of a token."""


class StepPlan(Struct, frozen=True, array_like=True, tag="plan"):
    """One step. Rows of the result follow `scheduled_slots`.

    A row computes the KV of its next `scheduled_counts` tokens. If it then has no known token left to
    compute, it samples the next one, which becomes the sequence's newest token on the device: the next
    plan may schedule it before the engine core has seen it.
    """

    epoch: Epoch
    step: Step
    scheduled_slots: Column
    """int32[n]"""
    scheduled_counts: Column
    """int32[n], each at least 1"""
    released: Column = b""
    """int32: slots that are free from here on"""
    started: Annotated[tuple[SequenceStart, ...], Meta(max_length=MAX_ENTRIES)] = ()
    grown_slots: Column = b""
    """int32[g]: slots whose block tables grow by …"""
    grown_blocks: WideColumn = b""
    """int32[g, groups]: … one block each (a slot may appear several times, in order)"""
    masked_rows: Column = b""
    """int32[m]: rows, of those that sample, which may only sample …"""
    masks: TableColumn = b""
    """uint32[m, ceil(vocab_size / 32)]: … these tokens: bit i % 32 of word i // 32 stands for token i. Empty
    although there are such rows: `StepMasks` follow, found out while the step computes"""


class StepMasks(Struct, frozen=True, array_like=True, tag="masks"):
    """What the masked rows of the last plan, which came without, may sample. No other plan comes before."""

    epoch: Epoch
    step: Step
    masks: TableColumn
    """As in StepPlan, of the plan's `masked_rows` in their order"""


class Reset(Struct, frozen=True, array_like=True, tag="reset"):
    """Forget every sequence; a new epoch begins. Weights stay."""

    epoch: Epoch


class Profile(Struct, frozen=True, array_like=True, tag="profile"):
    """Start or stop a profiler trace. Answered by `WorkerReply` (on stop: where the trace is)."""

    nonce: Count
    start: bool


EngineToWorker = StepPlan | StepMasks | Reset | Profile


# ── worker → engine core ────────────────────────────────────────────────────────────────────────


class WorkerReady(Struct, frozen=True, array_like=True, tag="ready"):
    """The group is loaded and idle. Sent after start and again to every new engine core."""

    protocol_version: Count
    fingerprint: Label
    rank: Count
    incarnation: Count
    model_fingerprint: Label
    """Hash of config, dtype and tensor headers: the same weights give the same fingerprint."""
    facts: EngineFacts


class StepResult(Struct, frozen=True, array_like=True, tag="result"):
    """What a step sampled; rows as in the plan."""

    epoch: Epoch
    step: Step
    token_ids: Column
    """int32[n]; NO_TOKEN for a row that did not sample (a prompt chunk that is not the last)"""
    logprobs: LogprobBlock | None = None
    prompt_logprobs: Annotated[
        tuple[tuple[Count, Count, LogprobBlock], ...], Meta(max_length=MAX_ENTRIES)
    ] = ()
    """(row, first position, block) for rows that asked for them"""
    failed_rows: Annotated[tuple[tuple[Count, Label], ...], Meta(max_length=MAX_ENTRIES)] = ()
    """(row, error code): these requests alone end with an error; their token is NO_TOKEN"""
    embeddings: Annotated[tuple[tuple[Count, Vector], ...], Meta(max_length=MAX_ENTRIES)] = ()
    """(row, vector of length 1) of the sequences that are complete; their token is NO_TOKEN"""


class StepFailed(Struct, frozen=True, array_like=True, tag="failed"):
    """The whole step came to nothing and the resident batch is no longer to be trusted: a reset follows."""

    epoch: Epoch
    step: Step
    slots: Column
    """int32: the rows held responsible, or all of the step's"""
    code: Label
    message: Prose


class WorkerReply(Struct, frozen=True, array_like=True, tag="reply"):
    """Answer to Profile."""

    nonce: Count
    ok: bool
    message: Prose = ""


WorkerToEngine = WorkerReady | StepResult | StepFailed | WorkerReply
