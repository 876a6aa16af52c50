"""Steps: how the rows of a resident batch are computed. HostSteps do it on the CPU, and each is done when it
is launched; gpu/steps.py does it on a GPU, one step ahead of its results.

    plan attention → forward → logits → sample → feed back → reply
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from protocol.errors import NoTokenAllowed, NumericalError
from protocol.messages import NO_TOKEN, EngineFacts, LogprobBlock
from protocol.steps import SequenceStart, StepPlan, StepResult

from .batch import Batch, Int32s, Ints, Rows
from .kernels.attention import AttentionPlanner, StepLayout
from .kernels.cpu.library import Library
from .kv_cache import KVCache
from .kv_layout import KVLayout
from .launched import Done, Launched
from .logprobs import LogprobReports
from .lora import Adapters
from .masks import Masks
from .models.registry import Model
from .pooling import Pooling, instead_of_tokens
from .sampler import Sampler
from .threads import StepThreads
from .worker import MaskSource


@dataclass(slots=True)
class Served:
    """What steps work on: a loaded model, its KV, and the batch that is resident."""

    model: Model
    layout: KVLayout
    cache: KVCache
    facts: EngineFacts
    batch: Batch
    reports: LogprobReports
    pooling: Pooling
    adapters: Adapters | None = None


class Steps(Protocol):
    def start(self, start: SequenceStart) -> None:
        """A sequence has entered the batch: keep what sampling needs of it."""

    def granted(self, blocks: Int32s) -> None:
        """These blocks were granted in this step, and what is in them is somebody else's."""

    def launch(self, plan: StepPlan, rows: Rows, masks: MaskSource) -> Launched:
        """The batch is edited, and these are its rows. `masks` may wait, and may raise StepAbandoned."""

    def release(self) -> None:
        """Give up what is under way, and give back what only a step needs."""


class HostSteps:
    """Steps."""

    def __init__(
        self, served: Served, dtype: torch.dtype, kernels: Library | None, threads: StepThreads
    ) -> None:
        facts = served.facts
        self.served = served
        self.planner = AttentionPlanner(
            served.cache.shape,
            dtype,
            [group.window for group in served.layout.groups],
            kernels,
            stored=served.cache.tensor.dtype,
        )
        self.sampler = Sampler(facts.max_num_seqs, facts.vocab_size, facts.eos_token_ids, kernels)
        self.threads = threads

    def start(self, start: SequenceStart) -> None:
        token_ids = np.frombuffer(start.token_ids, dtype=np.int32)
        self.sampler.start(start.slot, start.sampling, token_ids, start.num_prompt_tokens)

    def granted(self, blocks: Int32s) -> None:
        if self.planner.needs_blank_blocks:  # what a failed sequence left there may be NaN
            self.served.cache.blank(blocks)

    def launch(self, plan: StepPlan, rows: Rows, masks: MaskSource) -> Launched:
        served, batch = self.served, self.served.batch
        self.threads.begin(len(rows.token_rows))
        token_ids, positions = batch.inputs(rows)
        layout, tables = layout_of(batch, rows, positions)
        plans = self.planner.plan(layout, tables)
        if served.adapters is not None:
            served.adapters.begin(rows)
        metadata = [plans[group] for group in served.layout.group_of]
        x = served.model(token_ids, torch.from_numpy(positions), served.cache.layers, metadata)
        prompts = self._prompt_logprobs(x, rows)
        vectors = served.pooling.pool(x, rows, served.model.states)
        ends = x if rows.last_tokens is None else x[rows.last_tokens]
        result = self._sample(plan, masks, rows, served.model.logits(ends), prompts)
        self.threads.end()
        return Done(instead_of_tokens(result, vectors) if vectors else result)

    def release(self) -> None:
        """Torch's kernels have blocks blanked when they are granted again."""
        self.planner.release()

    def _sample(
        self,
        plan: StepPlan,
        source: MaskSource,
        rows: Rows,
        logits: Tensor,
        prompts: tuple[tuple[int, int, LogprobBlock], ...],
    ) -> StepResult:
        batch, reports, slots = self.served.batch, self.served.reports, rows.sampling_slots
        likeliest, failed = self.sampler.examine(logits)
        if len(failed):
            logits[torch.from_numpy(failed)] = 0.0  # sampling and feeding back go on with any valid token
        asked = reports.rows(slots)
        raw = logits[torch.from_numpy(asked)] if len(asked) else logits  # a copy: sampling edits
        plan_rows = rows.plan_rows[rows.sampling]
        masks = Masks.of(plan, source, plan_rows, self.served.facts.vocab_size)
        positions = batch.num_tokens[slots] - batch.num_prompt[slots]
        tokens = self.sampler.sample(logits, slots, positions, masks, likeliest)
        stuck = np.flatnonzero(tokens.numpy() == NO_TOKEN)
        if len(stuck):
            tokens[torch.from_numpy(stuck)] = 0  # any valid token to feed back
        batch.advance(rows, tokens)
        block = None
        if len(asked):
            block = reports.block(raw, tokens[torch.from_numpy(asked)], plan_rows[asked], slots[asked])
        return reply(plan, rows, tokens.numpy(), failed, stuck, block, prompts)

    def _prompt_logprobs(self, x: Tensor, rows: Rows) -> tuple[tuple[int, int, LogprobBlock], ...]:
        served = self.served
        found = []
        for stretch in prompt_stretches(served, rows):
            there = torch.from_numpy(stretch.token_ids)
            part = x[stretch.begin : stretch.begin + len(there)]
            block = served.reports.prompt_block(served.model, part, there, stretch.slot)
            found.append((stretch.plan_row, stretch.first_position, block))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class PromptStretch:
    """Of a chunk whose sequence wants log-probabilities of its prompt: position i's hidden state tells about
    the token at i + 1."""

    plan_row: int
    slot: int
    begin: int
    """Of the step's tokens, the first that tells."""
    first_position: int
    """Of what is told about."""
    token_ids: Ints


def prompt_stretches(served: Served, rows: Rows) -> list[PromptStretch]:
    batch, found = served.batch, []
    for row in served.reports.prompt_rows(rows.slots[rows.num_decodes :]) + rows.num_decodes:
        slot = int(rows.slots[row])
        first = int(batch.num_computed[slot]) + 1
        stop = min(first + int(rows.counts[row]), int(batch.num_prompt[slot]))
        if first < stop:
            known = batch.known_tokens(slot, first, stop)
            found.append(
                PromptStretch(int(rows.plan_rows[row]), slot, int(rows.query_start[row]), first, known)
            )
    return found


def layout_of(batch: Batch, rows: Rows, positions: Ints) -> tuple[StepLayout, Int32s]:
    """The step as attention sees it, and the block tables of its rows [groups, n, width]."""
    context_lens = batch.num_computed[rows.slots] + rows.counts
    width = -(-int(context_lens.max()) // batch.block_size)
    layout = StepLayout(rows.query_start, rows.token_rows, positions, context_lens, rows.num_decodes)
    return layout, batch.block_tables[:, rows.slots, :width]


def reply(
    plan: StepPlan,
    rows: Rows,
    tokens: Ints,
    failed: Ints,
    stuck: Ints,
    block: LogprobBlock | None,
    prompts: tuple[tuple[int, int, LogprobBlock], ...],
) -> StepResult:
    """`tokens` of the rows that sample; which of these are not finite, and which may sample nothing."""
    plan_rows = rows.plan_rows[rows.sampling]
    token_ids = np.full(len(rows.slots), NO_TOKEN, dtype=np.int32)
    token_ids[plan_rows] = tokens
    token_ids[plan_rows[failed]] = token_ids[plan_rows[stuck]] = NO_TOKEN
    return StepResult(
        epoch=plan.epoch,
        step=plan.step,
        token_ids=token_ids.tobytes(),
        logprobs=block,
        prompt_logprobs=prompts,
        failed_rows=(
            *((row, NumericalError.code) for row in plan_rows[failed].tolist()),
            *((row, NoTokenAllowed.code) for row in plan_rows[stuck].tolist()),
        ),
    )
