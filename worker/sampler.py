"""The sampler: logits → tokens, as a list of steps, each skipped when no row asks for it.

    logit bias → no end before min_tokens → only what is allowed → no bad word → penalties → mask
      → greedy rows: the likeliest
      → others: temperature → floors → draw

It keeps the parameters of each slot; what it needs of a step is gathered once and kept while the same
slots sample. Everything is a function of the prompt ids, the output ids and the parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.messages import NO_TOKEN
from protocol.sampling import SamplingParams

from .bad_words import BadWords, Words
from .filters import draw, min_p_floor, top_k_top_p_floor
from .kernels.cpu.library import Library
from .kernels.sampling import Limits, SamplingKernels
from .masks import Masks
from .penalties import Penalties
from .randomness import uniform

Ints = NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""A lower temperature means greedy."""


@dataclass(slots=True)
class Selection:
    """The parameters of the rows of a step: indices of the rows concerned, None when there are none."""

    slots: Ints
    bias: tuple[Tensor, Tensor, Tensor] | None
    """(rows, token ids, values)"""
    min_tokens: Ints | None
    allowed: Masks | None
    bad_words: Words | None
    penalized: Tensor | None
    penalized_slots: Tensor
    penalties: tuple[Tensor, Tensor, Tensor]
    """repetition, presence, frequency, each [rows, 1]"""
    drawn: Tensor | None
    """Rows that are not greedy; the following are of these."""
    temperature: Tensor
    """[rows, 1]"""
    floors: list[Callable[[Tensor], Tensor]]
    limits: Limits
    """The same for the kernels in C."""
    seeds: NDArray[np.uint64]

    @property
    def edits(self) -> bool:
        """Whether logits are changed for anybody."""
        steps = (self.bias, self.min_tokens, self.allowed, self.bad_words, self.penalized)
        return any(rows is not None for rows in steps)


class Sampler:
    def __init__(
        self,
        max_num_seqs: int,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        kernels: Library | None = None,
    ) -> None:
        self.kernels = SamplingKernels(kernels) if kernels is not None else None
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.penalties = Penalties(max_num_seqs, vocab_size)
        self.bad_words = BadWords(max_num_seqs, vocab_size)
        self._params: list[SamplingParams] = [SamplingParams(temperature=0)] * max_num_seqs
        self._plain = np.ones(max_num_seqs, dtype=np.bool_)
        """Greedy and nothing else: such rows need no gathering at all."""
        self._selection: Selection | None = None

    def start(self, slot: int, params: SamplingParams, token_ids: NDArray[np.int32], num_prompt: int) -> None:
        """A sequence enters, with its outputs so far."""
        self._params[slot] = params
        penalized = Penalties.wanted(params)
        if penalized:
            self.penalties.start(slot, token_ids, num_prompt)
        self.bad_words.start(slot, params.bad_words, token_ids[num_prompt:])
        edited = (
            penalized
            or params.logit_bias
            or params.min_tokens
            or params.allowed_token_ids
            or params.bad_words
        )
        self._plain[slot] = params.temperature < GREEDY_BELOW and not edited
        self._selection = None

    def examine(self, logits: Tensor) -> tuple[Tensor, Ints]:
        """float32 logits [n, vocab] → the likeliest tokens int64[n], and the rows that are not finite."""
        if self.kernels is None:
            tokens, finite = logits.argmax(-1), logits.sum(-1).isfinite().numpy()
        else:
            tokens, finite = self.kernels.choose(logits)
        return tokens, np.flatnonzero(~finite)

    def sample(
        self,
        logits: Tensor,
        slots: Ints,
        output_positions: Ints,
        masks: Masks | None = None,
        likeliest: Tensor | None = None,
    ) -> Tensor:
        """float32 logits [n, vocab] of n slots, which may be changed → int64[n].

        The output position of a row is the number of output tokens before the one to be sampled. `likeliest`
        are the tokens that `examine` found, if it was asked. NO_TOKEN for a row whose own rules (allowed
        tokens, bad words) leave none.
        """
        if self._plain[slots].all():
            if masks is not None:
                masks.apply(logits, self.kernels)
                likeliest = None
            return self.examine(logits)[0] if likeliest is None else likeliest
        if self._selection is None or self._selection.slots is not slots:
            self._selection = self._select(slots)
        selection = self._selection
        for edit in (_add_bias, self._forbid_ends, self._restrict, self._penalize):
            edit(logits, selection, output_positions)
        stuck = _stuck(logits, selection)
        if masks is not None:
            masks.apply(logits, self.kernels)
        edited = selection.edits or masks is not None
        tokens = self.examine(logits)[0] if likeliest is None or edited else likeliest
        if selection.drawn is not None:
            tokens[selection.drawn] = self._draw(logits, selection.drawn, selection, output_positions)
        if selection.penalized is not None:
            self.penalties.count(selection.penalized_slots, tokens[selection.penalized])
        if selection.bad_words is not None:
            self.bad_words.count(selection.bad_words, slots, tokens.numpy())
        if stuck is not None:
            tokens[stuck] = NO_TOKEN
        return tokens

    # ── steps ───────────────────────────────────────────────────────────────────────────────────

    def _forbid_ends(self, logits: Tensor, selection: Selection, output_positions: Ints) -> None:
        if selection.min_tokens is None:
            return
        for row in np.flatnonzero(output_positions < selection.min_tokens).tolist():
            stops = self._params[selection.slots[row]].stop_token_ids
            ends = [token for token in (*self.eos_token_ids, *stops) if token < self.vocab_size]
            logits[row, ends] = -torch.inf

    def _restrict(self, logits: Tensor, selection: Selection, _: Ints) -> None:
        if selection.allowed is not None:
            selection.allowed.apply(logits, self.kernels)
        if selection.bad_words is not None:
            self.bad_words.forbid(logits, selection.bad_words)

    def _penalize(self, logits: Tensor, selection: Selection, _: Ints) -> None:
        if (rows := selection.penalized) is not None:
            slots = selection.penalized_slots
            logits[rows] = self.penalties.apply(logits[rows], slots, *selection.penalties)

    def _draw(self, logits: Tensor, drawn: Tensor, selection: Selection, output_positions: Ints) -> Tensor:
        """Of the rows that are not greedy."""
        rows = drawn.numpy()
        numbers = uniform(selection.seeds, output_positions[rows])
        if self.kernels is not None:
            return self.kernels.draw(logits, rows, selection.limits, numbers)
        logits = logits[drawn] / selection.temperature
        floors: Tensor | None = None
        for floor in selection.floors:
            floors = floor(logits) if floors is None else torch.maximum(floors, floor(logits))
        return draw(logits, floors, torch.from_numpy(numbers).unsqueeze(1))

    # ── gathering ───────────────────────────────────────────────────────────────────────────────

    def _select(self, slots: Ints) -> Selection:
        params = [self._params[slot] for slot in slots.tolist()]
        penalized = [row for row, p in enumerate(params) if Penalties.wanted(p)]
        drawn = [row for row, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
        min_tokens = np.array([p.min_tokens for p in params])
        who_pays = [params[row] for row in penalized]
        who_draws = [params[row] for row in drawn]
        return Selection(
            slots=slots,
            bias=self._bias(params),
            min_tokens=min_tokens if min_tokens.any() else None,
            allowed=Masks.allowing([p.allowed_token_ids for p in params], self.vocab_size),
            bad_words=self.bad_words.select(slots),
            penalized=torch.tensor(penalized) if penalized else None,
            penalized_slots=torch.from_numpy(slots[penalized]),
            penalties=(
                _column([p.repetition_penalty for p in who_pays]),
                _column([p.presence_penalty for p in who_pays]),
                _column([p.frequency_penalty for p in who_pays]),
            ),
            drawn=torch.tensor(drawn) if drawn else None,
            temperature=_column([p.temperature for p in who_draws]),
            floors=_floors(who_draws),
            limits=Limits(
                temperature=np.array([p.temperature for p in who_draws], dtype=np.float32),
                top_k=np.array([p.top_k for p in who_draws], dtype=np.int64),
                top_p=np.array([p.top_p for p in who_draws], dtype=np.float32),
                min_p=np.array([p.min_p for p in who_draws], dtype=np.float32),
            ),
            seeds=np.array([p.seed for p in who_draws], dtype=np.uint64),
        )

    def _bias(self, params: list[SamplingParams]) -> tuple[Tensor, Tensor, Tensor] | None:
        entries = [
            (row, token, value)
            for row, p in enumerate(params)
            for token, value in p.logit_bias
            if token < self.vocab_size  # no such token, so no effect
        ]
        if not entries:
            return None
        rows, tokens, values = zip(*entries, strict=True)
        return torch.tensor(rows), torch.tensor(tokens), torch.tensor(values)


def _add_bias(logits: Tensor, selection: Selection, _: Ints) -> None:
    if selection.bias is not None:
        rows, tokens, values = selection.bias
        logits.index_put_((rows, tokens), values, accumulate=True)


def _stuck(logits: Tensor, selection: Selection) -> Tensor | None:
    """Rows whose own rules leave no token. Such a row is made valid, so that sampling goes on."""
    if selection.allowed is None and selection.bad_words is None:
        return None
    rows = torch.nonzero(logits.amax(-1) == -torch.inf).squeeze(1)
    logits[rows] = 0.0
    return rows if len(rows) else None


def _floors(params: list[SamplingParams]) -> list[Callable[[Tensor], Tensor]]:
    """The filters that any of these rows asks for."""
    found: list[Callable[[Tensor], Tensor]] = []
    if any(p.top_k or p.top_p < 1 for p in params):
        top_k, top_p = torch.tensor([p.top_k for p in params]), torch.tensor([p.top_p for p in params])
        found.append(lambda logits: top_k_top_p_floor(logits, top_k, top_p))
    if any(p.min_p for p in params):
        min_p = torch.tensor([p.min_p for p in params])
        found.append(lambda logits: min_p_floor(logits, min_p))
    return found


def _column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(1)
