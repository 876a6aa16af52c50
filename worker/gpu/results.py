"""What a step on the device leaves for the host besides its tokens, and the reply that is made of it all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from protocol.steps import StepPlan, StepResult

from ..batch import Ints, Rows
from ..graphs import StepsAhead
from ..kernels.triton.sampling import NO_TOKEN, NOT_FINITE
from ..logprobs import Ranked
from ..masks import Masks
from ..pooling import instead_of_tokens
from ..steps import PromptStretch, Served, prompt_stretches, reply


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a step is asked for that no graph does."""

    ranked: Ints
    """Of the rows that sample, those whose log-probabilities are wanted."""
    on_host: Ints
    """Of these, those that are sampled on the host."""
    masks: Callable[[], Masks | None]
    """To be asked for once, when all is launched that needs no mask."""
    late: bool
    """These are still to come."""
    prompts: list[PromptStretch]
    vectors: bool

    @classmethod
    def of(
        cls, served: Served, rows: Rows, on_host: Ints, masks: Callable[[], Masks | None], *, late: bool
    ) -> "Wanted":
        ranked = served.reports.rows(rows.sampling_slots)
        vectors = served.pooling.wants(rows.slots)
        return cls(ranked, on_host, masks, late, prompt_stretches(served, rows), vectors)

    @property
    def nothing(self) -> bool:
        return not (self.late or len(self.ranked) or len(self.on_host) or self.prompts or self.vectors)


@dataclass(slots=True)
class Left:
    """Tensors that no later step writes to."""

    ranked: Ranked | None = None
    prompts: list[Ranked] = field(default_factory=list)
    vectors: dict[int, Tensor] = field(default_factory=dict)
    """By row of the plan."""

    def tensors(self) -> list[Tensor]:
        ranked = [*self.prompts] if self.ranked is None else [self.ranked, *self.prompts]
        found = [column for one in ranked for column in one if column is not None]
        return [*found, *self.vectors.values()]

    def on_host(self, there: Sequence[Tensor]) -> "Left":
        """The same, of the copies of `tensors`, in their order."""
        left = iter(there)
        return Left(
            None if self.ranked is None else _again(self.ranked, left),
            [_again(one, left) for one in self.prompts],
            {row: next(left) for row in self.vectors},
        )


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A Launched."""

    ahead: StepsAhead
    served: Served
    plan: StepPlan
    rows: Rows
    wanted: Wanted
    left: Left

    def ready(self) -> bool:
        return self.ahead.ready()

    def result(self) -> StepResult:
        sampled, more = self.ahead.collect()
        left, rows, tokens = self.left.on_host(more), self.rows, sampled.numpy()
        block = None
        if left.ranked is not None:
            block = left.ranked.block(rows.plan_rows[rows.sampling][self.wanted.ranked])
        prompts = tuple(
            (stretch.plan_row, stretch.first_position, ranked.block(np.arange(len(stretch.token_ids))))
            for stretch, ranked in zip(self.wanted.prompts, left.prompts, strict=True)
        )
        failed = np.flatnonzero(tokens == NOT_FINITE.value)
        stuck = np.flatnonzero(tokens == NO_TOKEN.value)
        result = reply(self.plan, rows, tokens, failed, stuck, block, prompts)
        return instead_of_tokens(result, left.vectors) if left.vectors else result


def _again(ranked: Ranked, columns: Iterator[Tensor]) -> Ranked:
    return Ranked(*(next(columns) for column in ranked if column is not None))
