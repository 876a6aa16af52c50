"""TorchRunner: one rank's model behind the message loop. The common path of a step reads top to bottom:

    edit the batch → plan attention → forward → logits → sample → feed back → reply

It knows no sockets and no requests; every rank of a group does the same and samples the same tokens.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol import columns
from protocol.config import WorkerConfig
from protocol.errors import NoTokenAllowed, NumericalError, OutOfMemory
from protocol.messages import NO_TOKEN, EngineFacts, LogprobBlock
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan, StepResult

from . import checksums, devices
from .batch import Batch, Rows
from .checkpoint import Checkpoint
from .failures import RowsFailed
from .kernels.attention import AttentionPlanner, KVShape, StepLayout
from .kernels.cpu import library
from .kernels.device import StepPlanner
from .kv_cache import KVBudget, KVCache, fit
from .kv_layout import lay_out
from .logprobs import LogprobReports
from .masks import Masks
from .memory import available_memory
from .models.registry import build
from .parallel import Group
from .pooling import Pooling, instead_of_tokens, kind_of
from .sampler import Sampler
from .step_budget import StepSizes
from .threads import StepThreads, physical_cores
from .weights import Report, Wants, load, random_part, reader
from .worker import MaskSource, carried

Ints = NDArray[np.int64]
_WARM_UP_TOKENS = 24


class TorchRunner:
    """See worker.Runner, whose contract it fulfils."""

    def __init__(self, config: WorkerConfig, report: Report) -> None:
        """Loads the model and takes the KV memory. Raises StartupError or OutOfMemory."""
        self.device_kernels = devices.kernels_of(config.parallel.device)
        self.device = devices.CPU if self.device_kernels is None else self.device_kernels.device
        size = config.parallel.tensor_parallel_size
        threads = config.parallel.threads or max(physical_cores() // size, 1)
        torch.set_num_threads(threads)
        report("preparing kernels", "(the first start compiles them)", None)
        self.kernels, which = library.load(config.parallel.cpu_kernels, os.environ)
        report("preparing kernels", which, None)
        if self.kernels is not None:
            self.kernels.set_threads(threads)
            self.kernels.records = not config.parallel.enforce_eager
        elif config.parallel.cpu_kernels == "auto" and config.rank == 0:
            print(f"tern: {which}", file=sys.stderr, flush=True)
        report("reading the checkpoint", "", None)
        dummy = config.model.load_format == "dummy"
        checkpoint = Checkpoint(Path(config.model.model), with_weights=not dummy, may_map=config.model.mmap)
        files = {stored.path.name for stored in checkpoint.tensors.values()}
        checksums.verify(checkpoint.folder, files, report, rank=config.rank, size=size)
        if size > 1:
            report("waiting for the other ranks", "", None)
        self.group = Group(config.rank, size, Path(config.group_dir))
        with self.device:
            self.model, wants = build(checkpoint, config.model, self.group, self.kernels, self.device_kernels)
        self.layout = lay_out(self.model.windows)
        read = random_part if dummy else reader(wants, checkpoint)
        working_bytes = wants.working_bytes(checkpoint.tensors)
        self.facts = self._facts(config, checkpoint.eos_token_ids(), wants, working_bytes)
        set_pool = None if self.kernels is None else self.kernels.set_threads
        self.threads = StepThreads(threads, wants.num_bytes() // wants.dtype.itemsize, set_pool)
        self.model_fingerprint = checkpoint.fingerprint(
            self.facts.dtype, config.model.load_format, wants.formats.name
        )
        load(wants, read, report)

        facts = self.facts
        shape = KVShape(facts.num_blocks, self.model.num_kv_heads, facts.block_size, self.model.head_dim)
        with self.device:
            self.model.cover(facts.max_model_len)
            self.cache = KVCache(self.layout, shape, wants.dtype)
        windows = [group.window for group in self.layout.groups]
        self.planner: StepPlanner = (
            AttentionPlanner(self.cache.shape, wants.dtype, windows, self.kernels)
            if self.device_kernels is None
            else self.device_kernels.planner(facts.block_size, windows)
        )
        self.batch = Batch(facts)
        self.sampler = Sampler(facts.max_num_seqs, facts.vocab_size, facts.eos_token_ids, self.kernels)
        self.reports = LogprobReports(facts.max_num_seqs)
        self.pooling = Pooling(facts.max_num_seqs, facts.pooling)
        self._folder = Path(config.group_dir)
        # `with device` sends each call of torch through Python: 1.2 ms of a step of the bundled model.
        on_cpu = self.device_kernels is None
        self._new_tensors: AbstractContextManager[object] = nullcontext() if on_cpu else self.device
        self._profiler: torch.profiler.profile | None = None
        self.measured: tuple[tuple[int, float, float], ...] = ()
        report("warming up", "", None)
        self._warm_up()

    def reset(self) -> None:
        """Forget every sequence. Torch's kernels have blocks blanked when they are granted again."""
        self.batch.reset()
        self.planner.release()

    def spoil(self, blocks: Sequence[int]) -> None:
        """NaN into these blocks, in all layers."""
        self.cache.tensor[:, :, list(blocks)] = math.nan

    @torch.inference_mode()
    def execute(self, plan: StepPlan, masks: MaskSource = carried) -> StepResult:
        """One step. Raises InternalError for a plan that breaks the rules; then `reset` must follow."""
        batch = self.batch
        granted = batch.edit(plan)
        for start in plan.started:
            self._start(start)
        if len(granted) and self.planner.needs_blank_blocks:  # what a failed sequence left there may be NaN
            self.cache.blank(granted)
        rows = batch.arrange(plan)
        self.threads.begin(len(rows.token_rows))
        token_ids, positions = batch.inputs(rows)
        context_lens = batch.num_computed[rows.slots] + rows.counts
        width = -(-int(context_lens.max()) // batch.block_size)
        tables = batch.block_tables[:, rows.slots, :width]
        layout = StepLayout(rows.query_start, rows.token_rows, positions, context_lens, rows.num_decodes)
        plans = self.planner.plan(layout, tables)
        metadata = [plans[group] for group in self.layout.group_of]
        where = torch.from_numpy(positions).to(self.device)
        with self._new_tensors:
            x = self.model(token_ids.to(self.device), where, self.cache.layers, metadata)
        prompts = self._prompt_logprobs(x, rows)
        vectors = self.pooling.pool(x, rows, self.model.states)
        ends = x if rows.last_tokens is None else x[rows.last_tokens]
        result = self._sample(plan, masks, rows, self.model.logits(ends), prompts)
        self.threads.end()
        return instead_of_tokens(result, vectors) if vectors else result

    def profile(self, start: bool) -> str:
        """Start a trace, or stop it and return where its file is. Says so when there is nothing to do."""
        if start and self._profiler is None:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profiler.start()
            return "started"
        if start or self._profiler is None:
            return "already started" if start else "not started"
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = str(self._folder / f"trace-rank{self.group.rank}.json")
        profiler.export_chrome_trace(path)
        return path

    # ── parts of a step ─────────────────────────────────────────────────────────────────────────

    def _start(self, start: SequenceStart) -> None:
        token_ids = np.frombuffer(start.token_ids, dtype=np.int32)
        try:
            self.sampler.start(start.slot, start.sampling, token_ids, start.num_prompt_tokens)
            self.reports.start(start.slot, start.sampling)
            self.pooling.start(start.slot, start.embed)
        except Exception as error:
            raise RowsFailed((start.slot,), error) from error

    def _sample(
        self,
        plan: StepPlan,
        source: MaskSource,
        rows: Rows,
        logits: Tensor,
        prompts: tuple[tuple[int, int, LogprobBlock], ...],
    ) -> StepResult:
        batch, slots = self.batch, rows.sampling_slots
        likeliest, failed = self.sampler.examine(logits)
        if len(failed):
            logits[torch.from_numpy(failed)] = 0.0  # sampling and feeding back go on with any valid token
        asked = self.reports.rows(slots)
        raw = logits[torch.from_numpy(asked)] if len(asked) else logits  # a copy: sampling edits
        plan_rows = rows.plan_rows[rows.sampling]
        masks = Masks.of(plan, source, plan_rows, self.facts.vocab_size)
        positions = batch.num_tokens[slots] - batch.num_prompt[slots]
        tokens = self.sampler.sample(logits, slots, positions, masks, likeliest)
        stuck = np.flatnonzero(tokens.numpy() == NO_TOKEN)
        if len(stuck):
            tokens[torch.from_numpy(stuck)] = 0  # any valid token to feed back
        batch.advance(rows, tokens)
        token_ids = np.full(len(rows.slots), NO_TOKEN, dtype=np.int32)
        token_ids[plan_rows] = tokens.numpy()
        token_ids[plan_rows[failed]] = token_ids[plan_rows[stuck]] = NO_TOKEN
        block = None
        if len(asked):
            block = self.reports.block(raw, tokens[torch.from_numpy(asked)], plan_rows[asked], slots[asked])
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

    def _prompt_logprobs(self, x: Tensor, rows: Rows) -> tuple[tuple[int, int, LogprobBlock], ...]:
        """Of the chunks that asked: position i's hidden state tells about the token at i + 1."""
        found = []
        for row in self.reports.prompt_rows(rows.slots[rows.num_decodes :]) + rows.num_decodes:
            slot, begin = int(rows.slots[row]), int(rows.query_start[row])
            first = int(self.batch.num_computed[slot]) + 1
            stop = min(first + int(rows.counts[row]), int(self.batch.num_prompt[slot]))
            if first >= stop:
                continue
            there = torch.from_numpy(self.batch.known_tokens(slot, first, stop))
            block = self.reports.prompt_block(self.model, x[begin : begin + stop - first], there, slot)
            found.append((int(rows.plan_rows[row]), first, block))
        return tuple(found)

    # ── starting up ─────────────────────────────────────────────────────────────────────────────

    def _facts(
        self, config: WorkerConfig, eos_token_ids: tuple[int, ...], wants: Wants, working_bytes: int
    ) -> EngineFacts:
        """Decide how much fits. Raises OutOfMemory or StartupError."""
        available = self.group.smallest(available_memory() // self.group.size)
        weights_bytes = wants.num_bytes()
        if weights_bytes + working_bytes > available:
            lighter = "" if config.model.quantization == "int4" else ", round it with --quantization int4"
            raise OutOfMemory(
                f"the weights ({wants.formats.name}) take {weights_bytes >> 20} MiB, and loading them "
                f"{working_bytes >> 20} MiB more, but {available >> 20} MiB are available",
                hint=f"use a smaller model{lighter}, or spread it with --tensor-parallel-size",
            )
        model, options = self.model, config.cache
        block_tokens = options.block_size * model.num_kv_heads * model.head_dim
        block_bytes = 2 * self.layout.num_places * block_tokens * wants.dtype.itemsize
        num_blocks, max_model_len = fit(
            KVBudget(
                options=options,
                groups=self.layout.groups,
                block_bytes=block_bytes,
                max_num_seqs=config.scheduler.max_num_seqs,
                chunk=config.scheduler.largest_chunk(config.model.max_model_len or model.max_len),
                model_len=model.max_len,
                wanted_len=config.model.max_model_len,
                available_bytes=available - weights_bytes,
            )
        )
        return EngineFacts(
            model=(*config.model.served_model_name, Path(config.model.model).name)[0],
            vocab_size=model.vocab_size,
            max_model_len=max_model_len,
            block_size=options.block_size,
            num_blocks=num_blocks,
            eos_token_ids=eos_token_ids,
            max_num_seqs=config.scheduler.max_num_seqs,
            device="cpu",
            dtype=str(wants.dtype).removeprefix("torch."),
            weights_bytes=weights_bytes,
            kv_bytes=num_blocks * block_bytes,
            kv_groups=self.layout.groups,
            embedding_size=model.hidden_size,
            pooling=kind_of(Path(config.model.model)),
            generates=not wants.headless,
        )

    def _warm_up(self) -> None:
        """Run the common path, so that libraries set themselves up before the first request, and once more to
        measure it."""
        count = min(_WARM_UP_TOKENS, self.facts.max_model_len - 1)
        num_blocks = -(-(count + 1) // self.facts.block_size) * len(self.facts.kv_groups)
        start = SequenceStart(
            slot=0,
            token_ids=columns.pack_ids([0] * count),
            num_prompt_tokens=count,
            num_computed_tokens=0,
            block_tables=columns.pack_ids(i % self.facts.num_blocks for i in range(num_blocks)),
            sampling=SamplingParams(),
        )
        slot = columns.pack_ids([0])
        prompt = StepPlan(0, 0, slot, columns.pack_ids([count]), started=(start,))
        token = StepPlan(0, 1, slot, columns.pack_ids([1]))
        for _ in range(2 if count > 0 else 0):
            sizes = StepSizes()
            self.measured = tuple([(*sizes.of(plan), self._seconds(plan)) for plan in (prompt, token)])
            self.reset()

    def _seconds(self, plan: StepPlan) -> float:
        """That a step takes."""
        begun = time.perf_counter()
        self.execute(plan)
        return time.perf_counter() - begun
