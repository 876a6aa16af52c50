"""Bad words: the last token of each is impossible where the output ends with all the tokens before it.

    output  … 7 4 9        word (4, 9, 2): 2 is impossible now       word (5,): 5 is, always

A function of the output ids only: each slot's newest ones are taken whenever a sequence (re)starts, so a
replay is exact. The prompt does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.messages import NO_TOKEN
from protocol.sampling import MAX_BAD_WORD_TOKENS

Ints = NDArray[np.int64]

_ANY = NO_TOKEN - 1
"""Fills up the beginning of a shorter word."""


@dataclass(frozen=True, slots=True)
class Words:
    """Those of the rows of a step, one entry each."""

    rows: Ints
    """[m] of the logits"""
    entry_slots: Ints
    """[m]"""
    beginnings: Ints
    """[m, width] all tokens but the last, behind _ANY"""
    lasts: Ints
    """[m]"""
    rows_concerned: Ints
    """Each row once."""


class BadWords:
    """The words of each slot, and the end of its output."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: list[Sequence[Sequence[int]]] = [()] * max_num_seqs
        self._ends = np.full((max_num_seqs, MAX_BAD_WORD_TOKENS - 1), NO_TOKEN, dtype=np.int64)

    def start(self, slot: int, words: Sequence[Sequence[int]], outputs: NDArray[np.int32]) -> None:
        """A sequence enters, with its outputs so far."""
        self._words[slot] = [word for word in words if max(word) < self._vocab_size]
        if words:
            self._ends[slot] = NO_TOKEN
            newest = outputs[-self._ends.shape[1] :]
            self._ends[slot, self._ends.shape[1] - len(newest) :] = newest

    def select(self, slots: Ints) -> Words | None:
        """The words of these slots' rows; None when there are none."""
        found = [(row, slot, word) for row, slot in enumerate(slots.tolist()) for word in self._words[slot]]
        if not found:
            return None
        rows, entry_slots, words = zip(*found, strict=True)
        width = max(map(len, words)) - 1
        return Words(
            rows=np.array(rows, dtype=np.int64),
            entry_slots=np.array(entry_slots, dtype=np.int64),
            beginnings=np.array(
                [[_ANY] * (width - len(word) + 1) + list(word[:-1]) for word in words], dtype=np.int64
            ).reshape(len(words), width),
            lasts=np.array([word[-1] for word in words], dtype=np.int64),
            rows_concerned=np.unique(np.array(rows, dtype=np.int64)),
        )

    def forbid(self, logits: Tensor, words: Words) -> None:
        """Make the next token of each word that is nearly complete impossible, in place."""
        width = words.beginnings.shape[1]
        ends = self._ends[words.entry_slots, self._ends.shape[1] - width :]
        complete = ((words.beginnings == _ANY) | (words.beginnings == ends)).all(axis=1)
        logits[torch.from_numpy(words.rows[complete]), torch.from_numpy(words.lasts[complete])] = -torch.inf

    def count(self, words: Words, slots: Ints, tokens: Ints) -> None:
        """The rows' slots output these tokens."""
        rows = words.rows_concerned
        concerned = slots[rows]
        self._ends[concerned, :-1] = self._ends[concerned, 1:]
        self._ends[concerned, -1] = tokens[rows]
