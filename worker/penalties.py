"""Repetition, presence and frequency penalties: functions of prompt and output ids only.

Repetition (CTRL: Keskar et al., 2019) concerns tokens of prompt and output, presence and frequency those
of the output. The counts are rebuilt from the ids whenever a sequence (re)starts, so a replay is exact.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.sampling import SamplingParams


class Penalties:
    """Token counts per slot. Memory is taken when the first request asks for a penalty."""

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self._size = (max_num_seqs, vocab_size)
        self._outputs = torch.empty(0, dtype=torch.int32)
        """[slots, vocab]: how often a token was output"""
        self._prompts = torch.empty(0, dtype=torch.bool)
        """[slots, vocab]: whether a token stands in the prompt"""

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        neutral = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1, 0, 0)
        return not neutral

    def start(self, slot: int, token_ids: NDArray[np.int32], num_prompt_tokens: int) -> None:
        """Count the tokens of a sequence that enters."""
        if not self._outputs.numel():
            self._outputs = torch.empty(self._size, dtype=torch.int32)
            self._prompts = torch.empty(self._size, dtype=torch.bool)
        ids = torch.from_numpy(token_ids.astype(np.int64))
        vocab_size = self._size[1]
        self._outputs[slot] = torch.bincount(ids[num_prompt_tokens:], minlength=vocab_size)
        self._prompts[slot] = False
        self._prompts[slot, ids[:num_prompt_tokens]] = True

    def count(self, slots: Tensor, token_ids: Tensor) -> None:
        """These slots output these tokens."""
        self._outputs[slots, token_ids] += 1

    def apply(
        self, logits: Tensor, slots: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
    ) -> Tensor:
        """logits [n, vocab] of n slots and their penalties [n, 1] → penalized logits."""
        counts = self._outputs[slots]
        put_out = counts > 0
        scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(put_out | self._prompts[slots], scaled, logits)
        return logits - frequency * counts - presence * put_out
