"""The smallest scheduler that can drive a runner: it hands out slots and blocks and writes step plans."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from protocol import columns
from protocol.config import WorkerConfig
from protocol.kv_groups import NO_BLOCK
from protocol.messages import NO_TOKEN, LogprobBlock
from protocol.options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions
from protocol.sampling import SamplingParams
from protocol.steps import SequenceStart, StepPlan, StepResult
from worker.runner import TorchRunner

GREEDY = SamplingParams(temperature=0)

TINY: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "float32",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": [2, 3],
}
"""config.json of a model for tests that need shapes rather than weights."""


def write_config(folder: Path, **changes: object) -> Path:
    """A folder with a config.json and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(msgspec.json.encode({**TINY, **changes}))
    return folder


def worker_config(
    model: Path,
    group_dir: Path,
    *,
    block_size: int = 4,
    num_kv_blocks: int = 400,
    max_model_len: int = 0,
    max_num_seqs: int = 16,
    rank: int = 0,
    size: int = 1,
    kv_cache_memory: int = 0,
    cpu_kernels: str = "auto",
    kv_cache_dtype: str = "auto",
    **model_options: object,
) -> WorkerConfig:
    """One thread, so that tests neither disturb one another nor depend on the machine."""
    options = {"model": str(model), "max_model_len": max_model_len, **model_options}
    parallel = {"tensor_parallel_size": size, "threads": 1, "cpu_kernels": cpu_kernels}
    cache = {
        "block_size": block_size,
        "num_kv_blocks": num_kv_blocks,
        "kv_cache_memory": kv_cache_memory,
        "kv_cache_dtype": kv_cache_dtype,
    }
    return WorkerConfig(
        incarnation=1,
        rank=rank,
        group_dir=str(group_dir),
        model=msgspec.convert(options, ModelOptions),
        cache=msgspec.convert(cache, CacheOptions),
        scheduler=SchedulerOptions(max_num_seqs=max_num_seqs),
        parallel=msgspec.convert(parallel, ParallelOptions),
    )


def quiet(_name: str, _detail: str, _fraction: float | None) -> None:
    """A progress report that nobody reads."""


class Resident:
    """A sequence as an engine core knows it."""

    def __init__(self, slot: int, token_ids: list[int], num_prompt: int, sampling: SamplingParams) -> None:
        self.slot = slot
        self.token_ids = token_ids
        self.num_prompt = num_prompt
        self.sampling = sampling
        self.num_computed = 0
        self.tables: tuple[list[int], ...] = ()
        """Of each KV group"""
        self.resident = False
        self.logprobs: list[dict[int, float]] = []
        """Of each output token: token → log-probability"""
        self.prompt_logprobs: dict[int, dict[int, float]] = {}
        """Of prompt positions"""
        self.failure = ""
        self.adapter = ""
        self.embed = False
        self.embedding: array[float] | None = None

    @property
    def blocks(self) -> list[int]:
        """Of a model with one KV group."""
        (table,) = self.tables
        return table

    @property
    def outputs(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def left(self) -> int:
        return len(self.token_ids) - self.num_computed


class Driver:
    """Runs sequences on a runner, plan by plan."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner
        self.free_slots = list(range(runner.facts.max_num_seqs))[::-1]
        self.free_blocks = list(range(runner.facts.num_blocks))[::-1]
        self.holders: Counter[int] = Counter()
        """How many sequences hold each block."""
        self.groups = runner.facts.kv_groups
        self.released: list[int] = []
        self.steps = 0
        self.most_held = 0
        """Blocks of one sequence at once."""

    def add(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams = GREEDY,
        *,
        outputs: Sequence[int] = (),
        shared: Sequence[Sequence[int]] = (),
        adapter: str = "",
    ) -> Resident:
        """A sequence that enters with its first step; shared tables, of each KV group, hold its first KV."""
        seq = Resident(self.free_slots.pop(), [*prompt, *outputs], len(prompt), sampling)
        seq.adapter = adapter
        seq.tables = tuple(list(table) for table in shared) or tuple([] for _ in self.groups)
        self.holders.update(block for table in seq.tables for block in table if block != NO_BLOCK)
        seq.num_computed = len(seq.tables[0]) * self.runner.facts.block_size
        return seq

    def drop(self, seq: Resident, *, keep_blocks: bool = False) -> None:
        """The sequence ends; its slot is released with the next plan."""
        self.released.append(seq.slot)
        self.free_slots.insert(0, seq.slot)
        if not keep_blocks:
            for table in seq.tables:
                self._release(table[::-1])
        seq.resident = False

    def plan(self, counts: Mapping[Resident, int]) -> StepPlan:
        """The plan that computes so many tokens of each. What has left a window is handed out again."""
        grown_slots: list[int] = []
        grown_blocks: list[int] = []
        started = []
        for seq, count in counts.items():
            self._trim(seq)
            if not seq.resident:
                seq.resident = True
                started.append(self._start(seq))
            needed = -(-(seq.num_computed + count) // self.runner.facts.block_size)
            while len(seq.tables[0]) < needed:
                grown_slots.append(seq.slot)
                for table in seq.tables:
                    table.append(self.free_blocks.pop())
                    self.holders[table[-1]] = 1
                    grown_blocks.append(table[-1])
            held = sum(block != NO_BLOCK for table in seq.tables for block in table)
            self.most_held = max(self.most_held, held)
        self.steps += 1
        released, self.released = self.released, []
        return StepPlan(
            epoch=1,
            step=self.steps,
            scheduled_slots=columns.pack_ids(seq.slot for seq in counts),
            scheduled_counts=columns.pack_ids(counts.values()),
            released=columns.pack_ids(released),
            started=tuple(started),
            grown_slots=columns.pack_ids(grown_slots),
            grown_blocks=columns.pack_ids(grown_blocks),
        )

    def step(self, counts: Mapping[Resident, int]) -> StepResult:
        """Execute and take in the result."""
        result = self.runner.execute(self.plan(counts))
        failures = dict(result.failed_rows)
        tokens = columns.unpack_ids(result.token_ids)
        assert len(tokens) == len(counts)
        for row, (seq, count) in enumerate(counts.items()):
            samples = count == seq.left
            seq.num_computed += count
            seq.failure = failures.get(row, "")
            assert (tokens[row] != NO_TOKEN) == (samples and not seq.failure and not seq.embed)
            if tokens[row] != NO_TOKEN:
                seq.token_ids.append(tokens[row])
        seqs = list(counts)
        for row, vector in result.embeddings:
            seqs[row].embedding = columns.unpack_floats(vector)
        if result.logprobs is not None:
            for row, logprobs in unpack(result.logprobs, {r: s.token_ids[-1] for r, s in enumerate(seqs)}):
                seqs[row].logprobs.append(logprobs)
        for row, first, block in result.prompt_logprobs:
            there = dict(enumerate(seqs[row].token_ids[first:]))
            for offset, logprobs in unpack(block, there):
                seqs[row].prompt_logprobs[first + offset] = logprobs
        return result

    def embed(self, prompts: Sequence[Sequence[int]], chunk: int = 1 << 20) -> list["array[float]"]:
        """Vectors of prompts that are computed beside each other, `chunk` tokens of each per step."""
        seqs = [self.add(prompt) for prompt in prompts]
        for seq in seqs:
            seq.embed = True
        while todo := [s for s in seqs if s.left]:
            self.step({s: min(s.left, chunk) for s in todo})
        for seq in seqs:
            self.drop(seq)
        return [seq.embedding or array("f") for seq in seqs]

    def run(self, seqs: Sequence[Resident], num_outputs: int, chunk: int = 1 << 20) -> list[list[int]]:
        """Until each has so many outputs; prompts advance by `chunk` tokens per step."""
        while todo := [s for s in seqs if len(s.outputs) < num_outputs]:
            self.step({s: min(s.left, chunk) for s in todo})
        return [s.outputs for s in seqs]

    def _trim(self, seq: Resident) -> None:
        for group, table in zip(self.groups, seq.tables, strict=True):
            first = group.first_block(seq.num_computed, self.runner.facts.block_size)
            self._release(table[:first])
            table[:first] = [NO_BLOCK] * first

    def _release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block != NO_BLOCK:
                self.holders[block] -= 1
                if not self.holders[block]:
                    self.free_blocks.append(block)

    def _start(self, seq: Resident) -> SequenceStart:
        return SequenceStart(
            slot=seq.slot,
            token_ids=columns.pack_ids(seq.token_ids),
            num_prompt_tokens=seq.num_prompt,
            num_computed_tokens=seq.num_computed,
            block_tables=columns.pack_ids(block for table in seq.tables for block in table),
            sampling=seq.sampling,
            adapter=seq.adapter,
            embed=seq.embed,
        )


def unpack(block: LogprobBlock, chosen: Mapping[int, int]) -> list[tuple[int, dict[int, float]]]:
    """(row, token → log-probability); `chosen` names the token that `block.chosen` is about."""
    rows = columns.unpack(columns.UINT32, block.rows)
    values: array[float] = columns.unpack_floats(block.top_values)
    ids, at_chosen = columns.unpack_ids(block.top_ids), columns.unpack_floats(block.chosen)
    found = []
    for i, row in enumerate(rows):
        part = slice(i * block.width, (i + 1) * block.width)
        found.append((row, {**dict(zip(ids[part], values[part], strict=True)), chosen[row]: at_chosen[i]}))
    return found
