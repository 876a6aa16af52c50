"""Masks of a step: the tokens that each constrained row may sample, as bits from the wire.

A mask concerns one sampling of one row. It is applied to logits after bias and penalties, so that nothing
can bring a forbidden token back; log-probabilities are reported from the raw logits, without it. What a
request itself allows (`allowed_token_ids`) is such a mask, too, the same in each step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import InternalError
from protocol.steps import StepPlan

Ints = NDArray[np.int64]
_WORD_BITS = 32


class Masks:
    """`rows` int64[m] of the logits, and the tokens `forbidden` to them, bool[m, vocab]."""

    def __init__(self, rows: Ints, forbidden: Tensor) -> None:
        self.rows = rows
        self.forbidden = forbidden

    @classmethod
    def of(cls, plan: StepPlan, sampling_rows: Ints, vocab_size: int) -> "Masks | None":
        """`sampling_rows`: the plan's row of each row of the logits. Raises InternalError."""
        if not plan.masked_rows:
            return None
        masked = np.frombuffer(plan.masked_rows, dtype=np.int32).astype(np.int64)
        row_bytes = -(-vocab_size // _WORD_BITS) * (_WORD_BITS // 8)
        if len(plan.masks) != len(masked) * row_bytes:
            raise InternalError(f"the plan has {len(plan.masks)} bytes of masks for {len(masked)} rows")
        row_of = {row: i for i, row in enumerate(sampling_rows.tolist())}
        unknown = [row for row in masked.tolist() if row not in row_of]
        if unknown:
            raise InternalError(f"the plan masks rows that do not sample: {unknown}")
        bits = np.frombuffer(plan.masks, dtype=np.uint8).reshape(len(masked), row_bytes)
        allowed = np.unpackbits(bits, axis=1, count=vocab_size, bitorder="little")
        rows = np.array([row_of[row] for row in masked.tolist()], dtype=np.int64)
        return cls(rows, torch.from_numpy(allowed == 0))

    @classmethod
    def allowing(cls, allowed: Sequence[tuple[int, ...]], vocab_size: int) -> "Masks | None":
        """The tokens that each row may sample; empty: all."""
        rows = [row for row, ids in enumerate(allowed) if ids]
        if not rows:
            return None
        forbidden = torch.ones(len(rows), vocab_size, dtype=torch.bool)
        for mask, row in zip(forbidden, rows, strict=True):
            mask[[token for token in allowed[row] if token < vocab_size]] = False
        return cls(np.array(rows, dtype=np.int64), forbidden)

    def apply(self, logits: Tensor) -> None:
        """Make what is forbidden impossible, in place."""
        rows = torch.from_numpy(self.rows)
        logits[rows] = logits[rows].masked_fill(self.forbidden, -torch.inf)
