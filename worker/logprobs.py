"""Log-probabilities in the shape of the wire, for the sequences that asked for them.

They describe the model, so they are taken from its raw logits: before temperature, penalties, bias and
filters.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor

from protocol.messages import LogprobBlock
from protocol.sampling import SamplingParams

Ints = NDArray[np.int64]

LOGITS_AT_ONCE = 1 << 24
"""Prompt positions are done in stretches of at most this many logits (64 MiB)."""


class GivesLogits(Protocol):
    """The part of a model that is needed here."""

    vocab_size: int

    def logits(self, x: Tensor) -> Tensor: ...


class LogprobReports:
    """What each slot wants to be told."""

    def __init__(self, max_num_seqs: int) -> None:
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
        token_ids = [self._token_ids[slot] for slot in slots.tolist()]
        width = max(int(self._widths[slots].max()), *map(len, token_ids))
        return _block(logits, chosen, plan_rows, width, token_ids)

    def prompt_rows(self, slots: Ints) -> Ints:
        """Which of these slots want a report on their prompt."""
        return np.flatnonzero(self._prompt_widths[slots] >= 0)

    def prompt_block(self, model: GivesLogits, x: Tensor, there: Tensor, slot: int) -> LogprobBlock:
        """Hidden states [n, hidden] and the tokens [n] that stand one position later; rows 0 … n-1."""
        length, width = max(LOGITS_AT_ONCE // model.vocab_size, 1), int(self._prompt_widths[slot])
        rows = np.arange(len(x))
        blocks = [
            _ranked(model.logits(x[i : i + length]), there[i : i + length], rows[i : i + length], width)
            for i in range(0, len(x), length)
        ]
        return LogprobBlock(
            rows=b"".join(b.rows for b in blocks),
            width=blocks[0].width,
            chosen=b"".join(b.chosen for b in blocks),
            top_ids=b"".join(b.top_ids for b in blocks),
            top_values=b"".join(b.top_values for b in blocks),
            ranks=b"".join(b.ranks for b in blocks),
        )


def _ranked(logits: Tensor, chosen: Tensor, rows: Ints, width: int) -> LogprobBlock:
    likelier = (logits > logits.gather(1, chosen.unsqueeze(1))).sum(-1)
    return structs.replace(_block(logits, chosen, rows, width), ranks=_bytes(likelier + 1, np.uint32))


def _block(
    logits: Tensor, chosen: Tensor, rows: Ints, width: int, token_ids: Sequence[tuple[int, ...]] = ()
) -> LogprobBlock:
    """`token_ids` of each row that come before the likeliest, as far as there are such."""
    logprobs = torch.log_softmax(logits, dim=-1)
    at_chosen = logprobs.gather(1, chosen.unsqueeze(1))
    values, ids = logprobs.topk(min(width, logits.shape[1]), dim=-1)
    for row, wanted in enumerate(token_ids):
        if wanted:
            first = torch.tensor([token for token in wanted if token < logits.shape[1]][: ids.shape[1]])
            ids[row, : len(first)], values[row, : len(first)] = first, logprobs[row, first]
    return LogprobBlock(
        rows=rows.astype(np.uint32).tobytes(),
        width=values.shape[1],
        chosen=_bytes(at_chosen, np.float32),
        top_ids=_bytes(ids, np.int32),
        top_values=_bytes(values, np.float32),
    )


def _bytes(column: Tensor, kind: type[np.number[Any]]) -> bytes:
    return column.numpy().astype(kind).tobytes()
