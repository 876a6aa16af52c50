"""Token embedding and output head, split over ranks by vocabulary.

A vocabulary that the ranks do not divide is padded: the last rank's part ends in rows of zeros, which
no token reaches and whose logits are cut off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel import Group, Span
from ..quantization.unquantized import Unquantized
from ..weights import Scope


def vocabulary_span(vocab_size: int, group: Group) -> Span:
    """Rows of the vocabulary that this rank holds; only the last ranks' parts can be shorter."""
    per_rank = -(-vocab_size // group.size)
    start = min(group.rank * per_rank, vocab_size)
    return Span(vocab_size, start, min(per_rank, vocab_size - start))


class Embedding:
    """ids [n] → [n, size]"""

    def __init__(self, scope: Scope, vocab_size: int, size: int, group: Group) -> None:
        self.group = group
        self.span = vocabulary_span(vocab_size, group)
        per_rank = -(-vocab_size // group.size)
        self.weight = torch.zeros(per_rank, size, dtype=scope.dtype)
        scope.want("weight", (vocab_size, size), self.weight[: self.span.length], (self.span.start, 0))

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(token_ids, self.weight)
        local = token_ids - self.span.start
        elsewhere = (local < 0) | (local >= self.span.length)
        x = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self.group.all_reduce(x.masked_fill(elsewhere.unsqueeze(1), 0))


class Head:
    """[n, size] → float32 logits [n, vocab_size], whole on every rank so that each can sample."""

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
        self.soft_cap = soft_cap
        self.vocab_size = vocab_size
        self.method = Unquantized()
        if tied is not None:
            scope.allow("weight")  # some writers store the tied matrix twice
            self.method.share(scope, tied.weight)
            return
        span = vocabulary_span(vocab_size, group)
        weight = torch.zeros(-(-vocab_size // group.size), size, dtype=scope.dtype)
        scope.want("weight", (vocab_size, size), weight[: span.length], (span.start, 0))
        self.method.share(scope, weight)

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.group.all_gather(self.method.multiply(x).float())
        if self.soft_cap is not None:
            logits = (logits / self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]
