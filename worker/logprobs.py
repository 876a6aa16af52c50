"""Log-probabilities in the shape of the wire, for the sequences that asked for them.

They describe the model, so they are taken from its raw logits: before temperature, penalties, bias and
filters.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.messages import LogprobBlock
from protocol.sampling import SamplingParams

Ints = NDArray[np.int64]

LOGITS_AT_ONCE = 1 << 24
"""Prompt positions are done in stretches of at most this many logits (64 MiB)."""


TopLogprobs = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""(float32 logits [n, vocab], tokens int64 [n], width ≤ vocab) → log-probabilities of these [n]; of the
`width` likeliest, and which these are, [n, width] each"""


def top_logprobs(logits: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """TopLogprobs, by torch."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(width, dim=-1)
    return logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), values, ids


class GivesLogits(Protocol):
    """The part of a model that is needed here."""

    vocab_size: int

    def logits(self, x: Tensor) -> Tensor: ...


class LogprobReports:
    """What each slot wants to be told."""

    def __init__(self, max_num_seqs: int, top: TopLogprobs = top_logprobs) -> None:
        self._top = top
        self._widths = np.full(max_num_seqs, -1, dtype=np.int64)
        """How many likeliest tokens beside the chosen one; -1: no report"""
        self._prompt_widths = np.full(max_num_seqs, -1, dtype=np.int64)
        self._token_ids: list[tuple[int, ...]] = [()] * max_num_seqs
        """To be reported before the likeliest."""

    def start(self, slot: int, params: SamplingParams) -> None:
        """A sequence enters."""
        self._widths[slot] = -1 if params.logprobs is None else params.logprobs
        self._prompt_widths[slot] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        self._token_ids[slot] = params.logprob_token_ids

    def rows(self, slots: Ints) -> Ints:
        """Which of these sampling slots want a report."""
        return np.flatnonzero(self._widths[slots] >= 0)

    def block(self, logits: Tensor, chosen: Tensor, plan_rows: Ints, slots: Ints) -> LogprobBlock:
        """Raw logits [n, vocab] and tokens [n] of the slots that asked; as wide as the widest wish."""
        return self.ranked(logits, chosen, slots).block(plan_rows)

    def ranked(self, logits: Tensor, chosen: Tensor, slots: Ints) -> "Ranked":
        """The same, where the logits are."""
        token_ids = [self._token_ids[slot] for slot in slots.tolist()]
        width = max(int(self._widths[slots].max()), *map(len, token_ids))
        return self._ranked(logits, chosen, width, token_ids)

    def prompt_rows(self, slots: Ints) -> Ints:
        """Which of these slots want a report on their prompt."""
        return np.flatnonzero(self._prompt_widths[slots] >= 0)

    def prompt_block(self, model: GivesLogits, x: Tensor, there: Tensor, slot: int) -> LogprobBlock:
        """Hidden states [n, hidden] and the tokens [n] that stand one position later; rows 0 … n-1."""
        return self.prompt_ranked(model, x, there, slot).block(np.arange(len(x)))

    def prompt_ranked(self, model: GivesLogits, x: Tensor, there: Tensor, slot: int) -> "Ranked":
        """The same, where the hidden states are."""
        length, width = max(LOGITS_AT_ONCE // model.vocab_size, 1), int(self._prompt_widths[slot])
        stretches = []
        for i in range(0, len(x), length):
            logits, tokens = model.logits(x[i : i + length]), there[i : i + length]
            likelier = (logits > logits.gather(1, tokens.unsqueeze(1))).sum(-1)
            stretches.append((*self._ranked(logits, tokens, width)[:3], likelier + 1))
        return Ranked(*(torch.cat(columns) for columns in zip(*stretches, strict=True)))

    def _ranked(
        self, logits: Tensor, chosen: Tensor, width: int, token_ids: Sequence[tuple[int, ...]] = ()
    ) -> "Ranked":
        """`token_ids` of each row that come before the likeliest, as far as there are such."""
        vocab = logits.shape[1]
        at_chosen, values, ids = self._top(logits, chosen, min(width, vocab))
        for row, wanted in enumerate(token_ids):
            if wanted:
                known = [token for token in wanted if token < vocab][: ids.shape[1]]
                first = torch.tensor(known, device=ids.device)
                ids[row, : len(first)] = first.to(ids.dtype)
                values[row, : len(first)] = logits[row, first] - (logits[row, chosen[row]] - at_chosen[row])
        return Ranked(at_chosen.unsqueeze(1), ids, values)


class Ranked(NamedTuple):
    """Log-probabilities of n rows."""

    chosen: Tensor
    """[n, 1]"""
    ids: Tensor
    """[n, width]"""
    values: Tensor
    """[n, width]"""
    ranks: Tensor | None = None
    """[n]"""

    def block(self, rows: Ints) -> LogprobBlock:
        """These are on the host by now; `rows` [n] is what they are of."""
        return LogprobBlock(
            rows=rows.astype(np.uint32).tobytes(),
            width=self.values.shape[1],
            chosen=_bytes(self.chosen, np.float32),
            top_ids=_bytes(self.ids, np.int32),
            top_values=_bytes(self.values, np.float32),
            ranks=b"" if self.ranks is None else _bytes(self.ranks, np.uint32),
        )


def _bytes(column: Tensor, kind: type[np.number[Any]]) -> bytes:
    return column.numpy().astype(kind).tobytes()
