"""TorchRunner: one rank's model behind the message loop: loads it, then turns plans into results.

    edit the batch → arrange its rows → launch a step of them (steps.py) → its result

It knows no sockets and no requests; every rank of a group does the same and samples the same tokens.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from protocol import columns
from protocol.config import WorkerConfig
from protocol.errors import OutOfMemory, StartupError
from protocol.messages import EngineFacts
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan, StepResult

from . import checksums, devices
from .batch import Batch
from .checkpoint import Checkpoint
from .failures import RowsFailed
from .kernels.attention import KVShape
from .kernels.cpu import library
from .kernels.cpu.library import Library
from .kv_cache import KVBudget, KVCache, fit, stored_dtype
from .kv_layout import lay_out
from .launched import Launched
from .logprobs import LogprobReports, top_logprobs
from .lora import Adapters
from .memory import available_memory, give_back, keep_freed, kv_vector_bytes, set_aside
from .models.registry import Model, build
from .parallel import Group
from .pooling import Pooling, kind_of
from .step_budget import StepSizes
from .steps import HostSteps, Served, Steps
from .threads import StepThreads, physical_cores
from .weight_image import WeightImage, fingerprint
from .weights import Read, Report, Wants, load, random_part, reader
from .worker import MaskSource, carried

_WARM_UP_TOKENS = 24

OpenImage = Callable[[str, Library], WeightImage | None]
"""WeightImage.open, with what the last worker left and what becomes of a new one."""


class TorchRunner:
    """See worker.Runner, whose contract it fulfils."""

    def __init__(self, config: WorkerConfig, report: Report, open_image: OpenImage | None = None) -> None:
        """Loads the model and takes the KV memory. Raises StartupError or OutOfMemory."""
        size = config.parallel.tensor_parallel_size
        self.config = config
        self.gpu = devices.choose(config.parallel, config.rank)
        self.device = devices.CPU if self.gpu is None else self.gpu.device
        threads = config.parallel.threads or max(physical_cores() // size, 1)
        torch.set_num_threads(threads)
        self.kernels = self._host_kernels(threads, report)
        report("reading the checkpoint", "", None)
        dummy = config.model.load_format == "dummy"
        checkpoint = Checkpoint(Path(config.model.model), with_weights=not dummy, may_map=config.model.mmap)
        files = {stored.path.name for stored in checkpoint.tensors.values()}
        checksums.verify(checkpoint.folder, files, report, rank=config.rank, size=size)
        if size > 1:
            report("waiting for the other ranks", "", None)
        self.group = Group(config.rank, size, Path(config.group_dir), self.device)
        gpu_kernels = None if self.gpu is None else self.gpu.kernels
        self.image = self._image(checkpoint, open_image)
        with self.device:
            model, wants = build(checkpoint, config.model, self.group, self.kernels, gpu_kernels, self.image)
        kv = config.cache.kv_cache_dtype
        self._stored = stored_dtype(kv, wants.dtype, model.head_dim, self.kernels, gpu_kernels)
        self._eos_token_ids = checkpoint.eos_token_ids()
        self.adapters = Adapters.open(config.model.lora, wants, config.scheduler.max_num_seqs)
        self.model_fingerprint = checkpoint.fingerprint(
            str(wants.dtype).removeprefix("torch."),
            config.model.load_format,
            wants.formats.name if kv == "auto" else f"{wants.formats.name}, {kv} KV",
            *(() if self.adapters is None else self.adapters.fingerprint()),
        )
        read = partial(random_part, device=self.device) if dummy else reader(wants, checkpoint)
        self._weights_bytes = wants.num_bytes() + (0 if self.adapters is None else self.adapters.num_bytes)
        available = self._available(wants, wants.working_bytes(checkpoint.tensors))
        if self.gpu is None:
            left = available - self._weights_bytes
            facts = self._fitted(model, wants, left, set_aside)
            step_threads = StepThreads(
                threads,
                self._weights_bytes // wants.dtype.itemsize,
                None if self.kernels is None else self.kernels.set_threads,
            )
            self._load(wants, read, report, checkpoint)
            self.served = self._serve(model, wants, facts)
            self.steps: Steps = HostSteps(self.served, wants.dtype, self.kernels, step_threads)
        else:
            self._load(wants, read, report, checkpoint)
            report("measuring what steps take", "", None)
            left = self._beside_steps(model, wants)
            self.served = self._serve(
                model, wants, self._fitted(model, wants, left, lambda all_of_it: all_of_it)
            )
            report("capturing steps", "", None)
            most_tokens = config.scheduler.largest_chunk(self.served.facts.max_model_len)
            self.steps = self.gpu.steps(
                self.served,
                most_tokens,
                eager=config.parallel.enforce_eager,
                agree=lambda worked: bool(self.group.smallest(int(worked))),
            )
        self.facts = self.served.facts
        self._folder = Path(config.group_dir)
        self._profiler: torch.profiler.profile | None = None
        self.measured: tuple[tuple[int, float, float], ...] = ()
        report("warming up", "", None)
        self._warm_up()

    def reset(self) -> None:
        """Forget every sequence."""
        self.steps.release()
        self.served.batch.reset()

    def spoil(self, blocks: Sequence[int]) -> None:
        """NaN into these blocks, in all layers."""
        self.served.cache.spoil(blocks)

    @torch.inference_mode()
    def launch(self, plan: StepPlan, masks: MaskSource = carried) -> Launched:
        """One step. Raises InternalError for a plan that breaks the rules; then `reset` must follow."""
        batch = self.served.batch
        granted = batch.edit(plan)
        for start in plan.started:
            self._start(start)
        if len(granted):
            self.steps.granted(granted)
        return self.steps.launch(plan, batch.arrange(plan), masks)

    def execute(self, plan: StepPlan, masks: MaskSource = carried) -> StepResult:
        """The same, and wait for it."""
        return self.launch(plan, masks).result()

    def profile(self, start: bool) -> str:
        """Start a trace, or stop it and return where its file is. Says so when there is nothing to do."""
        if start and self._profiler is None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            # acc_events: otherwise torch 2.11 warns that there will be no second cycle.
            self._profiler = torch.profiler.profile(activities=activities, acc_events=True)
            self._profiler.start()
            return "started"
        if start or self._profiler is None:
            return "already started" if start else "not started"
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = str(self._folder / f"trace-rank{self.group.rank}.json")
        profiler.export_chrome_trace(path)
        return path

    def _start(self, start: SequenceStart) -> None:
        try:
            if self.adapters is not None:
                self.adapters.start(start.slot, start.adapter)
            self.steps.start(start)
            self.served.reports.start(start.slot, start.sampling)
            self.served.pooling.start(start.slot, start.embed)
        except Exception as error:
            raise RowsFailed((start.slot,), error) from error

    # ── starting up ─────────────────────────────────────────────────────────────────────────────

    def _image(self, checkpoint: Checkpoint, open_image: OpenImage | None) -> WeightImage | None:
        """Of weights for the kernels in C; None: each start prepares them."""
        if open_image is None or self.kernels is None or not self.config.model.keep_weights:
            return None
        ranks = self.group.rank, self.group.size
        files = checkpoint.fingerprint(), checkpoint.stamps()
        return open_image(fingerprint(self.config.model, ranks, files, self.kernels.path.name), self.kernels)

    def _load(self, wants: Wants, read: Read, report: Report, checkpoint: Checkpoint) -> None:
        load(wants, read, report, checkpoint.let_go)
        if self.image is not None:
            self.image.finish()
        if self.adapters is not None:
            self.adapters.load(report)
        give_back()
        keep_freed()

    def _host_kernels(self, threads: int, report: Report) -> Library | None:
        """Those in C; a GPU has its own."""
        if self.gpu is not None:
            return None
        parallel = self.config.parallel
        report("preparing kernels", "(the first start compiles them)", None)
        kernels, which = library.load(parallel.cpu_kernels, os.environ)
        if kernels is None and parallel.batch_invariant == "on":
            raise StartupError(
                "--batch-invariant on needs the kernels in C: torch's sums depend on the batch",
                hint="install a C compiler, and leave --cpu-kernels torch out",
            )
        report("preparing kernels", which, None)
        if kernels is not None:
            kernels.set_threads(threads)
            kernels.records = not parallel.enforce_eager
            kernels.codes = self.config.model.compress_weights
        elif parallel.cpu_kernels == "auto" and self.config.rank == 0:
            print(f"tern: {which}", file=sys.stderr, flush=True)
        return kernels

    def _available(self, wants: Wants, working_bytes: int) -> int:
        """Bytes that each rank may take, weights included. Raises OutOfMemory when these do not fit."""
        if self.gpu is None:
            held = 0 if self.image is None else self.image.num_bytes
            available = self.group.smallest(available_memory() // self.group.size + held)
        else:
            share = self.config.cache.gpu_memory_utilization
            available = self.group.smallest(self.gpu.memory.available(share))
        if self._weights_bytes + working_bytes > available:
            lighter = (
                "" if self.config.model.quantization == "int4" else ", round it with --quantization int4"
            )
            raise OutOfMemory(
                f"the weights ({wants.formats.name}) take {self._weights_bytes >> 20} MiB, and loading them "
                f"{working_bytes >> 20} MiB more, but {available >> 20} MiB are available",
                hint=f"use a smaller model{lighter}, or spread it with --tensor-parallel-size",
            )
        return available

    def _beside_steps(self, model: Model, wants: Wants) -> int:
        """Bytes for KV on a GPU whose weights are loaded: what the largest steps leave, which are run once
        over hardly any blocks. Graphs keep a step's memory to themselves, so that of decodes counts
        twice."""
        gpu = self.gpu
        assert gpu is not None
        longest = min(self.config.model.max_model_len or model.max_len, model.max_len)
        facts = self._facts(model, wants, len(lay_out(model.windows).groups), longest)
        of_graphs = 0

        def rehearse() -> None:
            nonlocal of_graphs
            most_tokens = self.config.scheduler.largest_chunk(longest)
            steps = gpu.steps(self._serve(model, wants, facts), most_tokens, eager=True)
            of_graphs = gpu.memory.peak(steps.rehearse_decodes)
            steps.rehearse_chunks(most_tokens)

        taken = gpu.memory.peak(rehearse) + of_graphs
        available = gpu.memory.available(self.config.cache.gpu_memory_utilization)
        return self.group.smallest(max(available - taken, 0))

    def _fitted(
        self, model: Model, wants: Wants, available: int, for_kv: Callable[[int], int]
    ) -> EngineFacts:
        """With as many blocks as fit. `available`: bytes that this rank may still take; `for_kv`: what of it,
        when no size is given. Raises OutOfMemory or StartupError."""
        config = self.config
        num_blocks, max_model_len = fit(
            KVBudget(
                options=config.cache,
                groups=lay_out(model.windows).groups,
                block_bytes=self._block_bytes(model, wants),
                max_num_seqs=config.scheduler.max_num_seqs,
                chunk=config.scheduler.largest_chunk(config.model.max_model_len or model.max_len),
                model_len=model.max_len,
                wanted_len=config.model.max_model_len,
                available_bytes=available,
                for_kv=for_kv,
            )
        )
        return self._facts(model, wants, num_blocks, max_model_len)

    def _facts(self, model: Model, wants: Wants, num_blocks: int, max_model_len: int) -> EngineFacts:
        config = self.config
        return EngineFacts(
            model=(*config.model.served_model_name, Path(config.model.model).name)[0],
            vocab_size=model.vocab_size,
            max_model_len=max_model_len,
            block_size=config.cache.block_size,
            num_blocks=num_blocks,
            eos_token_ids=self._eos_token_ids,
            max_num_seqs=config.scheduler.max_num_seqs,
            device="cpu" if self.gpu is None else self.gpu.name,
            dtype=str(wants.dtype).removeprefix("torch."),
            weights_bytes=self._weights_bytes,
            kv_bytes=num_blocks * self._block_bytes(model, wants),
            kv_groups=lay_out(model.windows).groups,
            kv_dtype=str(self._stored).removeprefix("torch."),
            embedding_size=model.hidden_size,
            pooling=kind_of(Path(config.model.model)),
            generates=not wants.headless,
            adapters=() if self.adapters is None else self.adapters.names,
        )

    def _block_bytes(self, model: Model, wants: Wants) -> int:
        cache = self.config.cache
        vector = kv_vector_bytes(model.head_dim, wants.dtype.itemsize, cache.kv_cache_dtype)
        return 2 * lay_out(model.windows).num_places * cache.block_size * model.num_kv_heads * vector

    def _serve(self, model: Model, wants: Wants, facts: EngineFacts) -> Served:
        layout = lay_out(model.windows)
        shape = KVShape(facts.num_blocks, model.num_kv_heads, facts.block_size, model.head_dim)
        with self.device:
            model.cover(facts.max_model_len)
            cache = KVCache(layout, shape, self._stored)
        top = top_logprobs if self.gpu is None else self.gpu.kernels.top_logprobs
        reports = LogprobReports(facts.max_num_seqs, top)
        pooling = Pooling(facts.max_num_seqs, facts.pooling)
        return Served(model, layout, cache, facts, Batch(facts), reports, pooling, self.adapters)

    def _warm_up(self) -> None:
        """Run the common path, so that libraries set themselves up before the first request, and once more to
        measure it."""
        most = self.config.scheduler.max_num_batched_tokens
        count = min(_WARM_UP_TOKENS, most, self.facts.max_model_len - 1)
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
