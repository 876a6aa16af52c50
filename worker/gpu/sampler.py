"""DeviceSampler: the parameters of each slot on the device, and the kernels that sample with them.

    edit → sample       all rows, each with its slot's parameters (kernels/triton/sampling.py)
    bad words           depend on outputs that only the host remembers: these rows alone are sampled by
                        worker/sampler.py, from their logits on the host, which then has to wait for them

What a request allows (`allowed_token_ids`) is a mask that comes with each step, as a grammar's does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import InternalError
from protocol.messages import EngineFacts
from protocol.sampling import MAX_LOGIT_BIAS, MAX_STOP_TOKENS, SamplingParams
from protocol.steps import SequenceStart

from ..batch import Batch, Int32s, Ints, Rows
from ..kernels.triton.sampling import NOT_FINITE, Parameters, SampledRows, edit, sample
from ..masks import Masks
from ..penalties import Penalties
from ..sampler import GREEDY_BELOW, Sampler
from .staging import Staging

NO_MASK = -1


class DeviceSampler:
    def __init__(self, facts: EngineFacts, most_rows: int, staging: Staging, device: torch.device) -> None:
        slots, self._vocab_size = facts.max_num_seqs, facts.vocab_size
        self._eos = facts.eos_token_ids
        self._staging = staging
        self.parameters = greedy(slots, facts.vocab_size, len(facts.eos_token_ids), device)
        self.masks = torch.zeros(most_rows, -(-facts.vocab_size // 32), dtype=torch.int32, device=device)
        self.mask_rows = torch.full((most_rows,), NO_MASK, dtype=torch.int32, device=device)
        self.broken = torch.zeros(most_rows, dtype=torch.int32, device=device)
        self.tokens: Tensor = torch.zeros(most_rows, dtype=torch.int64, device=device)
        """[most rows]: where each step leaves what it sampled"""
        self._some_are_masked = False
        self._host = Sampler(slots, facts.vocab_size, facts.eos_token_ids)
        self._on_host = np.zeros(slots, dtype=np.bool_)
        self._allowed: dict[int, NDArray[np.uint8]] = {}
        """By slot: bits, as a mask's."""
        self._started: dict[int, tuple[SamplingParams, int]] = {}
        """By slot, and not yet on the device: parameters, length of the prompt."""

    # ── sequences ───────────────────────────────────────────────────────────────────────────────

    def start(self, start: SequenceStart) -> None:
        """A sequence enters, with its outputs so far; `put` takes it to the device."""
        slot, params = start.slot, start.sampling
        token_ids = np.frombuffer(start.token_ids, dtype=np.int32)
        self._on_host[slot] = bool(params.bad_words)
        if params.bad_words:
            self._host.start(slot, params, token_ids, start.num_prompt_tokens)
        self._allowed.pop(slot, None)
        if (allowed := Masks.allowing([params.allowed_token_ids], self._vocab_size)) is not None:
            self._allowed[slot] = _whole_words(allowed.bits, self._vocab_size)[0]
        if Penalties.wanted(params):
            self._count(slot, token_ids.astype(np.int64), start.num_prompt_tokens)
        self._started[slot] = params, start.num_prompt_tokens

    def put(self) -> None:
        """Parameters of what has started since."""
        if not self._started:
            return
        slots = np.array(list(self._started), dtype=np.int64)
        params = [p for p, _ in self._started.values()]
        lengths = [length for _, length in self._started.values()]
        self._started.clear()
        p, f32, i32 = self.parameters, np.float32, np.int32
        ends = [(*self._eos, *one.stop_token_ids) if one.min_tokens else () for one in params]
        biases = [one.logit_bias for one in params]
        columns: list[tuple[Tensor, Ints | Int32s | NDArray[np.float32]]] = [
            (p.temperature, np.array([_temperature(one) for one in params], f32)),
            (p.top_k, np.array([one.top_k for one in params], i32)),
            (p.top_p, np.array([one.top_p for one in params], f32)),
            (p.min_p, np.array([one.min_p for one in params], f32)),
            (p.repetition, np.array([one.repetition_penalty for one in params], f32)),
            (p.presence, np.array([one.presence_penalty for one in params], f32)),
            (p.frequency, np.array([one.frequency_penalty for one in params], f32)),
            (p.seeds, np.array([one.seed for one in params], np.uint64).view(np.int64)),
            (p.num_prompt, np.array(lengths, i32)),
            (p.min_tokens, np.array([one.min_tokens for one in params], i32)),
            (p.num_ends, np.array([len(one) for one in ends], i32)),
            (p.num_biases, np.array([len(one) for one in biases], i32)),
        ]
        if any(ends):
            columns.append((p.ends, _padded(ends, p.ends.shape[1], i32)))
        if any(biases):
            ids = [[token for token, _ in one] for one in biases]
            columns.append((p.bias_ids, _padded(ids, MAX_LOGIT_BIAS, i32)))
            values = [[value for _, value in one] for one in biases]
            columns.append((p.bias_values, _padded(values, MAX_LOGIT_BIAS, f32)))
        where, *there = self._staging.put(slots, *(column for _, column in columns))
        for (resident, _), values_there in zip(columns, there, strict=True):
            resident.index_copy_(0, where, values_there)

    def _count(self, slot: int, token_ids: Ints, num_prompt: int) -> None:
        """The tokens of a sequence with penalties."""
        counts, prompts = self.parameters.counts[slot], self.parameters.prompts[slot]
        prompt, outputs = self._staging.put(token_ids[:num_prompt], token_ids[num_prompt:])
        prompts.zero_().index_fill_(0, prompt, 1)
        counts.zero_().index_add_(0, outputs, torch.ones_like(outputs, dtype=torch.int32))

    # ── steps ───────────────────────────────────────────────────────────────────────────────────

    def host_rows(self, slots: Ints) -> Ints:
        """Which of these sampling slots are sampled on the host."""
        return np.flatnonzero(self._on_host[slots])

    def mask(self, masks: Masks | None, slots: Ints) -> None:
        """Masks of a step that samples these slots."""
        allowed = [row for row, slot in enumerate(slots.tolist()) if slot in self._allowed]
        if masks is None and not allowed and not self._some_are_masked:
            return
        rows = np.full(len(self.mask_rows), NO_MASK, dtype=np.int32)
        bits = [self._allowed[int(slots[row])] for row in allowed]
        rows[allowed] = np.arange(len(allowed))
        if masks is not None:
            if set(masks.rows.tolist()) & set(allowed):
                raise InternalError("the plan masks a row whose request says itself what may follow")
            rows[masks.rows] = len(bits) + np.arange(len(masks.rows))
            bits += list(masks.bits)
        words = np.stack(bits).view(np.int32) if bits else np.empty((0, self.masks.shape[1]), dtype=np.int32)
        rows_there, words_there = self._staging.put(rows, words)
        self.mask_rows.copy_(rows_there)
        self.masks[: len(words)].copy_(words_there)
        self._some_are_masked = bool(bits)

    def rows(self, slots: Tensor, lens: Tensor) -> SampledRows:
        """int32 [n] each: the slots that sample, and how many tokens they have before it."""
        count = len(slots)
        return SampledRows(slots, lens, self.mask_rows[:count], self.masks, self.broken[:count])

    def sample(self, logits: Tensor, rows: SampledRows) -> Tensor:
        """float32 logits [n, vocab], which are changed → int64 [n]: tokens, or sampling.NO_TOKEN,
        NOT_FINITE. On the device, nothing is read back."""
        tokens = self.tokens[: len(logits)]
        logits = logits.contiguous()
        bests = edit(logits, self.parameters, rows)
        sample(logits, self.parameters, rows, bests, tokens)
        return tokens

    def sample_on_host(
        self, logits: Tensor, batch: Batch, rows: Rows, chosen: Ints, masks: Masks | None
    ) -> Tensor:
        """The logits of the rows `chosen` of those that sample, before they are edited. Waits for them."""
        slots, there = rows.sampling_slots[chosen], logits.cpu()
        likeliest, failed = self._host.examine(there)
        there[torch.from_numpy(failed)] = 0.0
        positions = batch.num_tokens[slots] - batch.num_prompt[slots]
        tokens = self._host.sample(there, slots, positions, _part(masks, chosen), likeliest)
        tokens[torch.from_numpy(failed)] = NOT_FINITE.value
        return self._staging.put(tokens.numpy())[0]


def greedy(slots: int, vocab_size: int, num_eos: int, device: torch.device) -> Parameters:
    """All zeros: the likeliest token, and no rules."""

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    i32 = torch.int32
    return Parameters(
        temperature=zeros(slots), top_k=zeros(slots, dtype=i32), top_p=zeros(slots), min_p=zeros(slots),
        repetition=zeros(slots), presence=zeros(slots), frequency=zeros(slots),
        seeds=zeros(slots, dtype=torch.int64), num_prompt=zeros(slots, dtype=i32),
        min_tokens=zeros(slots, dtype=i32),
        ends=zeros(slots, num_eos + MAX_STOP_TOKENS, dtype=i32), num_ends=zeros(slots, dtype=i32),
        bias_ids=zeros(slots, MAX_LOGIT_BIAS, dtype=i32), bias_values=zeros(slots, MAX_LOGIT_BIAS),
        num_biases=zeros(slots, dtype=i32),
        counts=zeros(slots, vocab_size, dtype=i32), prompts=zeros(slots, vocab_size, dtype=torch.int8),
    )  # fmt: skip


def _temperature(params: SamplingParams) -> float:
    return 0.0 if params.temperature < GREEDY_BELOW else params.temperature


def _padded(
    rows: Sequence[Sequence[float]], width: int, dtype: type
) -> NDArray[np.int32] | NDArray[np.float32]:
    found: NDArray[np.float32] = np.full((len(rows), width), -1, dtype=dtype)
    for into, row in zip(found, rows, strict=True):
        into[: len(row)] = row
    return found


def _whole_words(bits: NDArray[np.uint8], vocab_size: int) -> NDArray[np.uint8]:
    """[m, bytes] → as many bytes as words of 32 bits take"""
    return np.pad(bits, ((0, 0), (0, -(-vocab_size // 32) * 4 - bits.shape[1])))


def _part(masks: Masks | None, chosen: Ints) -> Masks | None:
    """The masks of these rows, which are counted anew."""
    if masks is None:
        return None
    place = {row: i for i, row in enumerate(chosen.tolist())}
    kept = [i for i, row in enumerate(masks.rows.tolist()) if row in place]
    if not kept:
        return None
    return Masks(np.array([place[int(masks.rows[i])] for i in kept], dtype=np.int64), masks.bits[kept])
