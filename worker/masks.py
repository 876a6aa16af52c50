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

from .kernels.sampling import SamplingKernels
from .worker import MaskSource

Ints = NDArray[np.int64]
_WORD_BITS = 32


class Masks:
    """`rows` int64[m] of the logits, and the `bits` of the tokens that they may sample, uint8[m, row_bytes],
    the lowest of a byte first."""

    def __init__(self, rows: Ints, bits: NDArray[np.uint8]) -> None:
        self.rows = rows
        self.bits = bits

    @classmethod
    def of(cls, plan: StepPlan, source: MaskSource, sampling_rows: Ints, vocab_size: int) -> "Masks | None":
        """`sampling_rows`: the plan's row of each row of the logits. Raises InternalError."""
        if not plan.masked_rows:
            return None
        masked = np.frombuffer(plan.masked_rows, dtype=np.int32).astype(np.int64)
        row_bytes = -(-vocab_size // _WORD_BITS) * (_WORD_BITS // 8)
        masks = source(plan)
        if len(masks) != len(masked) * row_bytes:
            raise InternalError(f"the plan has {len(masks)} bytes of masks for {len(masked)} rows")
        row_of = {row: i for i, row in enumerate(sampling_rows.tolist())}
        unknown = [row for row in masked.tolist() if row not in row_of]
        if unknown:
            raise InternalError(f"the plan masks rows that do not sample: {unknown}")
        bits = np.frombuffer(masks, dtype=np.uint8).reshape(len(masked), row_bytes)
        rows = np.array([row_of[row] for row in masked.tolist()], dtype=np.int64)
        return cls(rows, bits)

    @classmethod
    def allowing(cls, allowed: Sequence[tuple[int, ...]], vocab_size: int) -> "Masks | None":
        """The tokens that each row may sample; empty: all."""
        rows = [row for row, ids in enumerate(allowed) if ids]
        if not rows:
            return None
        may = np.zeros((len(rows), vocab_size), dtype=np.bool_)
        for mask, row in zip(may, rows, strict=True):
            mask[[token for token in allowed[row] if token < vocab_size]] = True
        return cls(np.array(rows, dtype=np.int64), np.packbits(may, axis=1, bitorder="little"))

    def apply(self, logits: Tensor, kernels: SamplingKernels | None = None) -> None:
        """Make what is forbidden impossible, in place."""
        if kernels is not None and logits.stride(1) == 1:
            kernels.mask(logits, self.rows, self.bits)
            return
        rows = torch.from_numpy(self.rows)
        allowed = np.unpackbits(self.bits, axis=1, count=logits.shape[1], bitorder="little")
        logits[rows] = logits[rows].masked_fill(torch.from_numpy(allowed == 0), -torch.inf)
