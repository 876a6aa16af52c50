"""StubRunner: a model that is a hash, without torch, behind the same loop and the same wire.

Its "KV" of a token is a hash of the token, of the sequence's adapter and of the KV before it, read back
through the block tables, as a real model's KV depends on the whole prefix. Its "attention" reads all that is
seen back and hashes it, and the next token follows from that hash alone. So any wrong, stale, lost, doubled
or reordered block or token changes everything after it, and one comparison of texts proves scheduling, block
accounting, replay and wire at once. Layers with a window (`sliding_window` and `layer_types` of config.json)
are groups of their own, as in a real model, and read no further back: a block that was released too early, or
is another group's, changes everything, too. Knows nothing of probabilities: its log-probabilities are made up
from the same hash.
"""

import math
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocol import columns
from protocol.adapters import adapter_names
from protocol.config import WorkerConfig
from protocol.errors import NoTokenAllowed, StartupError
from protocol.kv_groups import KVGroup, longest
from protocol.messages import NO_TOKEN, EngineFacts, LogprobBlock
from protocol.steps import SequenceStart, StepPlan, StepResult

from .kv_layout import Window, lay_out
from .launched import Done, Launched
from .worker import MaskSource, carried, no_tokens

_EOS_ODDS = 61
"""One token in this many would be end-of-sequence, so that tests meet it."""
_MASKED_EOS_ODDS = 4
"""The same where a mask allows it, so that answers to a grammar end."""
_WORD = (1 << 64) - 1
_EMBEDDING_SIZE = 16
_GARBAGE = 0xBAD0BAD0
_SALT = 0x00517E3D
"""Between the KV of one group and of the next."""


class _ModelFile(msgspec.Struct):
    """The part of config.json that a model without weights needs."""

    vocab_size: int = 512
    eos_token_id: int | list[int] | None = 0
    max_position_embeddings: int = 4096
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of each layer."""
        kinds = self.layer_types or ("sliding_attention",)
        return tuple(self.sliding_window if kind == "sliding_attention" else None for kind in kinds)


class _Sequence:
    """A resident sequence."""

    def __init__(self, start: SequenceStart, num_groups: int) -> None:
        self.token_ids = columns.unpack_ids(start.token_ids)
        self.num_prompt_tokens = start.num_prompt_tokens
        self.num_computed_tokens = start.num_computed_tokens
        blocks = columns.unpack_ids(start.block_tables)
        length = len(blocks) // num_groups
        self.tables = [blocks[group * length : (group + 1) * length] for group in range(num_groups)]
        self.sampling = start.sampling
        self.embed = start.embed
        self.flavour = _mix(zlib.crc32(start.adapter.encode())) if start.adapter else 0
        """What its adapter adds to the KV of each token."""


class StubRunner:
    """See the module. Deterministic in (prompt ids, output ids, sampling parameters)."""

    def __init__(self, config: WorkerConfig, windows: Sequence[Window] = ()) -> None:
        """`windows` of the layers; none: as config.json says. Raises StartupError."""
        path = Path(config.model.model) / "config.json"
        model = msgspec.json.decode(path.read_bytes(), type=_ModelFile) if path.is_file() else _ModelFile()
        eos = model.eos_token_id
        self.block_size = config.cache.block_size
        self.vocab_size = model.vocab_size
        self.eos_token_ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
        num_blocks = config.cache.num_kv_blocks or 4096
        self.cache = array(columns.UINT32, [0]) * (num_blocks * self.block_size)
        self.sequences: dict[int, _Sequence] = {}
        self.groups = lay_out(windows or model.windows).groups
        if KVGroup(1) in self.groups:
            raise StartupError(
                "sliding_window = 1: a token of the stub sees the one before it, so use 2 or more"
            )
        limit = config.model.max_model_len or model.max_position_embeddings
        chunk = config.scheduler.largest_chunk(limit)
        self.measured: tuple[tuple[int, float, float], ...] = ()
        self.facts = EngineFacts(
            model=(*config.model.served_model_name, "stub")[0],
            vocab_size=self.vocab_size,
            max_model_len=longest(self.groups, num_blocks, limit, chunk, self.block_size),
            block_size=self.block_size,
            num_blocks=num_blocks,
            eos_token_ids=self.eos_token_ids,
            max_num_seqs=config.scheduler.max_num_seqs,
            device="stub",
            dtype="hash",
            embedding_size=_EMBEDDING_SIZE,
            kv_bytes=len(self.cache) * self.cache.itemsize,
            kv_groups=self.groups,
            adapters=adapter_names(config.model.lora),
        )
        self._salts = [i * _SALT for i in range(len(self.groups))]
        self._windows = [group.window for group in self.groups]
        self.model_fingerprint = "-".join(
            ["stub", str(self.vocab_size), *map(str, filter(None, self._windows)), *self.facts.adapters]
        )

    def reset(self) -> None:
        self.sequences.clear()
        self.cache[:] = array(columns.UINT32, [0]) * len(self.cache)

    def spoil(self, blocks: Sequence[int]) -> None:
        size = self.block_size
        for block in blocks:
            self.cache[block * size : (block + 1) * size] = array(columns.UINT32, [_GARBAGE]) * size

    def profile(self, start: bool) -> str:
        return "the stub has nothing to profile"

    def launch(self, plan: StepPlan, masks: MaskSource = carried) -> Launched:
        return Done(self.execute(plan, masks))

    def execute(self, plan: StepPlan, masks: MaskSource = carried) -> StepResult:
        sequences = self.sequences
        for slot in columns.unpack_ids(plan.released):
            del sequences[slot]
        for start in plan.started:
            if start.slot in sequences:
                raise ValueError(f"slot {start.slot} is started twice")
            if start.adapter and start.adapter not in self.facts.adapters:
                raise ValueError(f"slot {start.slot} is started with an unknown adapter {start.adapter!r}")
            sequences[start.slot] = _Sequence(start, len(self.groups))
        blocks = iter(columns.unpack_ids(plan.grown_blocks))
        for slot in columns.unpack_ids(plan.grown_slots):
            for table in sequences[slot].tables:
                table.append(next(blocks))

        slots, counts = columns.unpack_ids(plan.scheduled_slots), columns.unpack_ids(plan.scheduled_counts)
        rows = [sequences[slot] for slot in slots]
        for sequence, count in zip(rows, counts, strict=True):
            self._write(sequence, count)

        allowed = _allowed(plan.masked_rows, masks(plan)) if plan.masked_rows else {}
        token_ids = no_tokens(len(rows))
        logprobs = _Logprobs()
        prompts = []
        vectors, failed = [], []
        for row, (sequence, count) in enumerate(zip(rows, counts, strict=True)):
            if sequence.sampling.prompt_logprobs is not None:
                prompts += self._prompt_logprobs(row, sequence, count)
            if sequence.num_computed_tokens < len(sequence.token_ids):
                continue
            word = self._attend(sequence, sequence.num_computed_tokens)
            if sequence.embed:
                vectors.append((row, _vector(word)))
                continue
            token = self._choose(word, sequence, allowed.get(row))
            if token == NO_TOKEN:
                failed.append((row, NoTokenAllowed.code))
                token = 0
            else:
                token_ids[row] = token
            sequence.token_ids.append(token)
            if sequence.sampling.logprobs is not None:
                logprobs.add(
                    row,
                    token,
                    word,
                    sequence.sampling.logprobs,
                    self.vocab_size,
                    sequence.sampling.logprob_token_ids,
                )
        return StepResult(
            epoch=plan.epoch,
            step=plan.step,
            token_ids=token_ids.tobytes(),
            logprobs=logprobs.block() if logprobs.entries else None,
            prompt_logprobs=tuple(prompts),
            failed_rows=tuple(failed),
            embeddings=tuple(vectors),
        )

    def _write(self, sequence: _Sequence, count: int) -> None:
        """Put the KV of the next `count` tokens into the cache, each at its place in the block table."""
        size, token_ids, cache = self.block_size, sequence.token_ids, self.cache
        first = sequence.num_computed_tokens
        if first + count > len(token_ids):
            raise ValueError(f"{count} tokens scheduled where {len(token_ids) - first} are left")
        groups = list(zip(sequence.tables, self._windows, self._salts, strict=True))
        value = 0
        if first:
            block, place = divmod(first - 1, size)
            values = {cache[table[block] * size + place] ^ salt for table, _, salt in groups}
            value = values.pop() if len(values) == 1 else _GARBAGE
        for position in range(first, first + count):
            block, place = divmod(position, size)
            # Not a CRC: that is linear, and in the CRC over all of them every other one would cancel out.
            value = _mix((value << 32 | token_ids[position]) ^ sequence.flavour) >> 32
            for table, window, _ in groups:
                if window is not None and position >= window - 1:  # depends on the oldest token that it sees
                    oldest, there = divmod(position - window + 1, size)
                    value = (value * 3 + cache[table[oldest] * size + there]) & 0xFFFFFFFF
            for table, _, salt in groups:
                cache[table[block] * size + place] = value ^ salt
        sequence.num_computed_tokens = first + count

    def _attend(self, sequence: _Sequence, length: int) -> int:
        """Hash of the KV that the last of the first `length` tokens sees, as the cache holds it; 64 bits."""
        size, cache = self.block_size, memoryview(self.cache)
        digest = 0
        for table, window in zip(sequence.tables, self._windows, strict=True):
            begin, place = divmod(0 if window is None else max(length - window, 0), size)
            for block in table[begin : length // size]:
                digest = zlib.crc32(cache[block * size + place : (block + 1) * size], digest)
                place = 0
            if tail := length % size:
                first = table[length // size] * size
                digest = zlib.crc32(cache[first + place : first + tail], digest)
        return _mix(digest + (length << 32))

    def _choose(self, word: int, sequence: _Sequence, allowed: list[int] | None) -> int:
        sampling = sequence.sampling
        num_outputs = sequence.num_computed_tokens - sequence.num_prompt_tokens
        if sampling.temperature > 0:
            word = _mix(word ^ _mix(sampling.seed + num_outputs))
        if allowed is not None:
            ends = [token for token in allowed if token in self.eos_token_ids]
            return ends[0] if ends and word % _MASKED_EOS_ODDS == 0 else allowed[(word >> 8) % len(allowed)]
        bad = _ends_of_words(sampling.bad_words, sequence.token_ids[sequence.num_prompt_tokens :])
        early = num_outputs < sampling.min_tokens
        if sampling.allowed_token_ids:
            if early:
                bad |= {*self.eos_token_ids, *sampling.stop_token_ids}
            left = [token for token in sampling.allowed_token_ids if token not in bad]
            return left[(word >> 8) % len(left)] if left else NO_TOKEN
        may_end = not sampling.ignore_eos and not early and bad.isdisjoint(self.eos_token_ids)
        if may_end and self.eos_token_ids and word % _EOS_ODDS == 0:
            return self.eos_token_ids[0]
        token = (word >> 8) % self.vocab_size
        while token in self.eos_token_ids or token in bad or (early and token in sampling.stop_token_ids):
            token = (token + 1) % self.vocab_size
        return token

    def _prompt_logprobs(
        self, row: int, sequence: _Sequence, count: int
    ) -> list[tuple[int, int, LogprobBlock]]:
        """Of the prompt tokens that this chunk's logits predict: the chunk's positions, moved by one."""
        last = sequence.num_computed_tokens
        first = last - count + 1
        logprobs = _Logprobs()
        for position in range(first, min(last + 1, sequence.num_prompt_tokens)):
            word = self._attend(sequence, position)
            width = sequence.sampling.prompt_logprobs or 0
            logprobs.add(position - first, sequence.token_ids[position], word, width, self.vocab_size)
        return [(row, first, logprobs.block())] if logprobs.entries else []


class _Logprobs:
    """Collects rows of made-up log-probabilities."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, float, list[tuple[int, float]]]] = []

    def add(
        self,
        row: int,
        token: int,
        word: int,
        width: int,
        vocab_size: int,
        token_ids: Sequence[int] = (),
    ) -> None:
        """`token_ids` are reported before the likeliest."""
        best = -(word % 1000) / 1000
        ids = [*token_ids, *((token + i) % vocab_size for i in range(len(token_ids), width))]
        top = [(one, best - i) for i, one in enumerate(ids)]
        self.entries.append((row, best, top))

    def block(self) -> LogprobBlock:
        width = max(len(top) for _, _, top in self.entries)
        padded = [top + [(NO_TOKEN, 0.0)] * (width - len(top)) for _, _, top in self.entries]
        return LogprobBlock(
            rows=columns.pack(columns.UINT32, (row for row, _, _ in self.entries)),
            width=width,
            chosen=columns.pack(columns.FLOAT32, (chosen for _, chosen, _ in self.entries)),
            top_ids=columns.pack_ids(token for top in padded for token, _ in top),
            top_values=columns.pack(columns.FLOAT32, (value for top in padded for _, value in top)),
        )


def _ends_of_words(words: Sequence[Sequence[int]], outputs: Sequence[int]) -> set[int]:
    """Tokens that would complete one of the words."""
    ends = set()
    for word in words:
        length = len(word) - 1
        if length <= len(outputs) and list(outputs[len(outputs) - length :]) == list(word[:-1]):
            ends.add(word[-1])
    return ends


def _vector(word: int) -> bytes:
    """A word's hashes as a vector of length 1."""
    numbers = [_mix(word + i) / _WORD - 0.5 for i in range(_EMBEDDING_SIZE)]
    length = math.hypot(*numbers)
    return columns.pack(columns.FLOAT32, [number / length for number in numbers])


def _allowed(rows: bytes, masks: bytes) -> dict[int, list[int]]:
    """Row → the tokens that it may sample."""
    masked = columns.unpack_ids(rows)
    width = len(masks) // len(masked)
    found = {}
    for place, row in enumerate(masked):
        bits = int.from_bytes(masks[place * width : (place + 1) * width], "little")
        found[row] = [token for token, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
    return found


def _mix(word: int) -> int:
    """splitmix64's finalizer (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
