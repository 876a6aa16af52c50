"""Token embedding and output head, split over ranks by vocabulary.

A vocabulary that the ranks do not divide leaves the last ranks with fewer rows, or none: what they gather
is filled up with zeros, which no token reaches and whose logits are cut off.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel import Group, Span, whole
from ..quantization.format import Cut
from ..weights import Scope
from .linear import Weight
from .norm import Norm


def vocabulary_span(vocab_size: int, group: Group) -> Span:
    """Rows of the vocabulary that this rank holds; only the last ranks' parts can be shorter."""
    per_rank = -(-vocab_size // group.size)
    start = min(group.rank * per_rank, vocab_size)
    return Span(vocab_size, start, min(per_rank, vocab_size - start))


class Embedding:
    """ids [n] → [n, size]"""

    weight: Tensor
    """[this rank's rows, size]; may be a view of the mapped checkpoint."""

    def __init__(self, scope: Scope, vocab_size: int, size: int, group: Group) -> None:
        self.group = group
        self.scope = scope
        self.span = vocabulary_span(vocab_size, group)
        self.size = size
        part = Cut(scope.name, self.span, whole(size)).tensor("weight", self.span, whole(size), kept=True)
        scope.request([part], self._take, self.span.length * size * scope.dtype.itemsize)

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(token_ids, self.weight)
        if self.span.length == 0:
            return self.group.all_reduce(self.weight.new_zeros(len(token_ids), self.size))
        local = token_ids - self.span.start
        elsewhere = (local < 0) | (local >= self.span.length)
        x = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self.group.all_reduce(x.masked_fill(elsewhere.unsqueeze(1), 0))

    def _take(self, tensors: Sequence[Tensor]) -> None:
        self.weight = self.scope.matrices.place(tensors[0].to(self.scope.dtype))


class Head:
    """[n, size] → float32 logits [n, vocab_size] of norm(x), whole on every rank so that each can sample."""

    def __init__(
        self,
        scope: Scope,
        vocab_size: int,
        size: int,
        group: Group,
        tied: Embedding | None,
        soft_cap: float | None = None,
    ) -> None:
        """`soft_cap` c bends logits into (-c, c): c tanh(logits / c)."""
        self.group = group
        self.on_device = None if scope.device is None else scope.device.project
        self.soft_cap = soft_cap
        self.vocab_size = vocab_size
        span = vocabulary_span(vocab_size, group)
        self.missing = -(-vocab_size // group.size) - span.length
        if tied is not None:
            scope.allow("weight")  # some writers store the tied matrix twice
            self.weight = Weight([(tied.scope, [span])], whole(size), role="tied head")
        else:
            self.weight = Weight([(scope, [span])], whole(size), role="head")

    def __call__(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        if self.on_device is not None:
            fused = None if norm is None else norm.fused
            logits = self.on_device(x, self.weight.matrix, fused, None, torch.float32)
        else:
            logits = self.weight.multiply(x if norm is None else norm(x), out_dtype=torch.float32)
        if self.missing:
            logits = F.pad(logits, (0, self.missing))
        logits = self.group.all_gather(logits)
        if self.soft_cap is not None:
            logits = (logits / self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]
