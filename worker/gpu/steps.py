"""DeviceSteps: Steps on a GPU. What decodes is resident there, so a step of decodes needs nothing of the
host but the list of its rows, and only when that has changed; the next step is launched before this one's
tokens are read.

    edit       slots that started, blocks that were granted                       state.py, sampler.py
    decode     begin → embedding → layers → head → edit → sample → end            one graph (graphs.py)
    mixed      the same calls, one by one; chunks bring their tokens along
    results    tokens, and what else was asked for, by a stream of their own      graphs.StepsAhead

Also one by one are steps of decodes whose logits somebody wants to see (log-probabilities), that sample a
row on the host (bad words), that make a vector, whose masks are still to come, or that are larger than any
graph or its room for attention.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protocol.steps import SequenceStart, StepPlan

from ..batch import Batch, Int32s, Ints, Rows
from ..graphs import DecodeGraphs, Device, StepsAhead, sizes
from ..kernels.triton import step_rows
from ..kernels.triton.decode_attention import SPLIT
from ..kernels.triton.device import ChunkInputs, Limits, TritonKernels, TritonPlanner, TritonStep
from ..kernels.triton.matmul import FEW_ROWS, SOME_ROWS
from ..kernels.triton.sampling import SampledRows
from ..kernels.triton.step_rows import NO_SLOT, DecodeRows
from ..launched import Launched
from ..masks import Masks
from ..steps import Served
from ..worker import MaskSource
from .adapters import DeviceAdapters
from .results import Left, OnDevice, Wanted
from .sampler import DeviceSampler
from .staging import Staging
from .state import DeviceState, aligned

MOST_CAPTURED = 512
"""Rows. A larger step takes longer than launching its kernels one by one."""
REHEARSED = (*reversed(SOME_ROWS), FEW_ROWS, 16)
"""Tokens of steps besides the largest: products of more, and of fewer, take other kernels."""


class DeviceSteps:
    """Steps."""

    def __init__(
        self,
        served: Served,
        kernels: TritonKernels,
        streams: Device,
        most_tokens: int,
        *,
        eager: bool,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        """`most_tokens` of a step. `eager`: no graphs. `agree`: see DecodeGraphs.capture."""
        facts, device = served.facts, kernels.device
        self.served, self.device = served, device
        self.staging = Staging(streams, device)
        self.state = DeviceState(facts, self.staging, device)
        most_rows, groups = aligned(facts.max_num_seqs), len(facts.kv_groups)
        self.sampler = DeviceSampler(facts, most_rows, self.staging, device)
        resident = served.adapters
        self.adapters = None if resident is None else DeviceAdapters(resident, self.staging, device)
        self.inputs = DecodeRows.empty(groups, most_rows, self.state.tables.shape[2], device)
        held = min(facts.num_blocks * facts.block_size, facts.max_num_seqs * facts.max_model_len)
        limits = Limits(most_rows, max(most_tokens, most_rows), held // SPLIT + most_rows)
        self.planner = TritonPlanner(kernels, [group.window for group in facts.kv_groups], limits)
        self.ahead = StepsAhead(streams, self.sampler.tokens, pinned=device.type == "cuda")
        captured = () if eager else sizes(min(facts.max_num_seqs, MOST_CAPTURED))
        self.graphs = DecodeGraphs(streams, self._decode, captured)
        self._arranged: Rows | None = None
        """Whose slots the inputs have."""
        with torch.inference_mode():
            if why := self.graphs.capture(agree):
                print(f"tern: kernels are launched one by one: {why}", file=sys.stderr, flush=True)

    def start(self, start: SequenceStart) -> None:
        self.sampler.start(start)

    def granted(self, blocks: Int32s) -> None:
        """What was not written is not read."""

    def release(self) -> None:
        self.ahead.abandon()
        self._arranged = None

    def launch(self, plan: StepPlan, rows: Rows, masks: MaskSource) -> Launched:
        served, batch = self.served, self.served.batch
        self.state.edit(plan, batch)
        if self.adapters is not None:
            self.adapters.edit(plan)
        self.sampler.put()

        def take_masks() -> Masks | None:
            found = Masks.of(plan, masks, rows.plan_rows[rows.sampling], served.facts.vocab_size)
            self.sampler.mask(found, rows.sampling_slots)
            return found

        late = bool(plan.masked_rows) and not plan.masks
        known = None if late else take_masks()
        on_host = self.sampler.host_rows(rows.sampling_slots)
        wanted = Wanted.of(served, rows, on_host, take_masks if late else lambda: known, late=late)
        left = Left()
        count, roomy = (
            rows.num_decodes,
            self.planner.fits(batch.num_computed[rows.slots[: rows.num_decodes]] + 1),
        )
        if count < len(rows.slots):
            step = self._mixed(rows, wanted, left, roomy)
        else:
            self._arrange(rows)
            if wanted.nothing and roomy:
                step = partial(self.graphs.run, count)
            else:
                step = partial(self._watched, rows, wanted, left, roomy)
        self.ahead.launch(lambda: step() or left.tensors(), len(rows.sampling))
        batch.advance(rows)
        return OnDevice(self.ahead, served, plan, rows, wanted, left)

    # ── parts of a step ─────────────────────────────────────────────────────────────────────────

    def _arrange(self, rows: Rows) -> None:
        """The rows that decode are the first of the inputs; those behind only pad."""
        if rows is not self._arranged:
            slots = np.full(len(self.inputs.slots), NO_SLOT, dtype=np.int32)
            slots[: rows.num_decodes] = rows.slots[: rows.num_decodes]
            self.inputs.slots.copy_(self.staging.put(slots)[0])
            self._arranged = rows

    def _begin(self, count: int) -> None:
        facts, state = self.served.facts, self.state
        step_rows.begin(
            self.inputs,
            count,
            state.newest,
            state.num_computed,
            state.tables,
            facts.block_size,
            facts.num_blocks,
        )

    def _forward(self, token_ids: Tensor, positions: Tensor, steps: Sequence[TritonStep]) -> Tensor:
        served = self.served
        metadata: Any = [steps[group] for group in served.layout.group_of]
        return served.model(token_ids, positions, served.cache.layers, metadata)

    def _decode(self, count: int) -> None:
        """What a graph captures: nothing here depends on a number that the host could change."""
        inputs, state = self.inputs, self.state
        self._begin(count)
        steps = self.planner.plan(inputs, count)
        slots = inputs.slots[:count]
        if self.adapters is not None:
            self.adapters.decode(slots)
        x = self._forward(inputs.token_ids[:count], inputs.positions[:count], steps)
        sampled = self.sampler.rows(slots, inputs.context_lens[:count])
        tokens = self.sampler.sample(self.served.model.logits(x), sampled)
        step_rows.end(
            slots, tokens, state.newest, state.num_computed, self.sampler.parameters.counts, advance=True
        )

    def _watched(self, rows: Rows, wanted: Wanted, left: Left, roomy: bool) -> None:
        """A step of decodes, for more than its tokens."""
        inputs, count = self.inputs, rows.num_decodes
        self._begin(count)
        steps = self.planner.plan(inputs, count, roomy=roomy)
        if self.adapters is not None:
            self.adapters.decode(inputs.slots[:count])
        x = self._forward(inputs.token_ids[:count], inputs.positions[:count], steps)
        sampled = self.sampler.rows(inputs.slots[:count], inputs.context_lens[:count])
        self._finish(x, x, sampled, rows, wanted, left, advance=True)

    def _mixed(self, rows: Rows, wanted: Wanted, left: Left, roomy: bool) -> Callable[[], None]:
        """Takes to the device what the host knows of a step with chunks."""
        batch, count = self.served.batch, rows.num_decodes
        if count:
            self._arrange(rows)
        chunk = _chunk_of(rows, batch)
        i32 = np.int32
        ends = rows.query_start[1:] - 1
        lens = batch.num_computed[rows.slots] + rows.counts
        token_ids, positions, starts, chunk_lens, last, slots, slot_lens, all_slots, computed, *kv_slots = (
            self.staging.put(
                chunk.token_ids, chunk.positions, chunk.starts, lens[count:].astype(i32),
                ends[rows.sampling], rows.sampling_slots.astype(i32), lens[rows.sampling].astype(i32),
                rows.slots, lens.astype(i32), *chunk.kv_slots,
            )
        )  # fmt: skip
        if self.adapters is not None:
            self.adapters.mixed(rows)
        state, inputs = self.state, self.inputs

        def step() -> None:
            if count:
                self._begin(count)
            tables = state.tables.index_select(1, all_slots[count:])
            steps = self.planner.plan(
                inputs, count, ChunkInputs(starts, tables, chunk_lens, kv_slots), roomy=roomy
            )
            ids = torch.cat((inputs.token_ids[:count], token_ids)) if count else token_ids
            at = torch.cat((inputs.positions[:count], positions)) if count else positions
            x = self._forward(ids, at, steps)
            sampled = self.sampler.rows(slots, slot_lens)
            self._finish(x, x.index_select(0, last), sampled, rows, wanted, left, advance=False)
            state.num_computed.index_copy_(0, all_slots, computed)

        return step

    def _finish(
        self,
        x: Tensor,
        ends: Tensor,
        sampled: SampledRows,
        rows: Rows,
        wanted: Wanted,
        left: Left,
        *,
        advance: bool,
    ) -> None:
        """From hidden states, and those of the rows that sample, to tokens and all else that is wanted."""
        served, model, sampler = self.served, self.served.model, self.sampler
        for stretch in wanted.prompts:
            there = self.staging.put(stretch.token_ids)[0]
            part = x[stretch.begin : stretch.begin + len(there)]
            left.prompts.append(served.reports.prompt_ranked(model, part, there, stretch.slot))
        left.vectors = served.pooling.pool(x, rows, model.states)
        if not len(rows.sampling):
            return
        logits = model.logits(ends)
        masks = wanted.masks()  # may wait for the engine core, while the device computes
        ranked, on_host = self.staging.put(wanted.ranked, wanted.on_host)
        raw = logits.index_select(0, ranked)  # a copy: sampling edits
        if len(wanted.on_host):
            mine = logits.index_select(0, on_host)
            chosen = sampler.sample_on_host(mine, served.batch, rows, wanted.on_host, masks)
        tokens = sampler.sample(logits, sampled)
        if len(wanted.on_host):
            tokens.index_copy_(0, on_host, chosen)
        state = self.state
        step_rows.end(
            sampled.slots,
            tokens,
            state.newest,
            state.num_computed,
            sampler.parameters.counts,
            advance=advance,
        )
        if len(wanted.ranked):
            known = tokens.index_select(0, ranked).clamp(min=0)
            left.ranked = served.reports.ranked(raw, known, rows.sampling_slots[wanted.ranked])

    # ── before the first ────────────────────────────────────────────────────────────────────────

    @torch.inference_mode()
    def rehearse_decodes(self) -> None:
        """The largest step of decodes, all of whose rows only pad."""
        self._decode(self.served.facts.max_num_seqs)

    @torch.inference_mode()
    def rehearse_chunks(self, most_tokens: int) -> None:
        """The largest mixed step, and a few smaller ones, over one block: to compile their kernels, and to
        know their memory."""
        for tokens in sorted({most_tokens, *(min(size, most_tokens) for size in REHEARSED)}, reverse=True):
            self._rehearse(tokens)

    def _rehearse(self, tokens: int) -> None:
        """Of sequences as long as they may be, which have no slots."""
        length, size = min(tokens, self.served.facts.max_model_len), self.served.facts.block_size
        starts = np.append(np.arange(0, tokens, length), tokens)
        positions = np.arange(tokens) % length
        count, sampling = len(starts) - 1, min(tokens, self.served.facts.max_num_seqs)
        nobody = np.full(sampling, NO_SLOT)
        token_ids, at, places, query_start, lens, slots = self.staging.put(
            np.zeros(tokens, dtype=np.int64), positions, positions % size, starts.astype(np.int32),
            np.diff(starts).astype(np.int32), nobody.astype(np.int32),
        )  # fmt: skip
        groups, _, width = self.state.tables.shape
        tables = self.state.tables.new_zeros(groups, count, width)
        if self.adapters is not None:
            self.adapters.none()
        chunks = ChunkInputs(query_start, tables, lens, [places] * groups)
        x = self._forward(token_ids, at, self.planner.plan(self.inputs, 0, chunks))
        logits = self.served.model.logits(x[:sampling])
        sampled = self.sampler.sample(logits, self.sampler.rows(slots, slots))
        self.served.reports.ranked(logits[:1], sampled[:1].clamp(min=0), nobody[:1])


class _Chunk(NamedTuple):
    """The tokens of a mixed step that are known to the host."""

    token_ids: Ints
    positions: Ints
    starts: Int32s
    """[n + 1] first token of each row"""
    kv_slots: Sequence[Ints]
    """Of each KV group"""


def _chunk_of(rows: Rows, batch: Batch) -> _Chunk:
    count, size = rows.num_decodes, batch.block_size
    counts, slots = rows.counts[count:], rows.slots[count:]
    computed, starts = batch.num_computed[slots], rows.query_start[count:] - rows.query_start[count]
    positions = np.arange(starts[-1]) + (computed - starts[:-1]).repeat(counts)
    token_ids = np.concatenate(
        [
            batch.known_tokens(slot, begin, begin + length)
            for slot, begin, length in zip(slots.tolist(), computed.tolist(), counts.tolist(), strict=True)
        ]
    )
    blocks = batch.block_tables[:, slots.repeat(counts), positions // size].astype(np.int64)
    return _Chunk(token_ids, positions, starts.astype(np.int32), list(blocks * size + positions % size))
