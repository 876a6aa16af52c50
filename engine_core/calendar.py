"""Calendar: which decoding requests need a decision before a step, and whose last token it brings.

    step      ┊ 41 ┊ 42 ┊ 43 ┊ 44 ┊ …     a request that decodes computes one token in every step, so the step
    due       ┊ r7 ┊    ┊ r3 ┊    ┊       that leaves its last block, or its context, is known when it begins:
    last      ┊    ┊ r9 ┊    ┊    ┊       nobody looks at it before

Knows neither budgets nor slots.
"""

from .request import Request


class Calendar:
    """Of one epoch, in step numbers."""

    def __init__(self, block_size: int) -> None:
        self.due: dict[int, dict[Request, None]] = {}
        self._last: dict[int, dict[Request, None]] = {}
        self._block_size = block_size

    def begin(self, request: Request, step: int) -> None:
        """`step` is the last one that does not yet decode it."""
        request.decoding_since = step
        self.postpone(request, step + 1, request.num_computed_tokens)
        request.last_step = step + request.max_total_tokens - request.num_tokens - 1
        self._last.setdefault(request.last_step, {})[request] = None

    def end(self, request: Request) -> None:
        """It decodes no more."""
        self._last.get(request.last_step, {}).pop(request, None)
        request.due_step = -1

    def due_at(self, step: int) -> list[Request]:
        """Who needs a decision before this step is planned."""
        return [request for request in self.due.get(step, ()) if request.due_step == step]

    def forget(self, step: int) -> None:
        """All decisions for it are taken."""
        self.due.pop(step, None)

    def postpone(self, request: Request, step: int, computed: int) -> None:
        """To the step that would leave its last block, or go beyond its last token: by `step` it has computed
        that many tokens, and one more with each."""
        capacity, last = request.num_blocks * self._block_size, request.max_total_tokens - 1
        due = request.due_step = step + (capacity if capacity < last else last) - computed
        if (others := self.due.get(due)) is not None:
            others[request] = None  # perhaps again: before it was preempted it was due then, too
        else:
            self.due[due] = {request: None}

    def take_last(self, step: int) -> tuple[Request, ...]:
        """Whose token of this step, which is planned now, is the last that fits."""
        return tuple([request for request in self._last.pop(step, ()) if request.last_step == step])
