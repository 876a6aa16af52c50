"""PlannedStep: a step in flight, as the scheduler remembers it until its result is back."""

from msgspec import Struct

from protocol import columns
from protocol.steps import SequenceStart, StepPlan

from .decode_batch import LaneStep
from .request import Request, State

MOST_STARTED_BYTES = 4 << 20
"""Of sequences that start in one step, before the last of them: a plan must fit a frame."""


class PlannedStep(Struct, frozen=True):
    """A plan and the requests behind its rows: first those that decode, lane by lane, then the chunks."""

    plan: StepPlan
    lanes: tuple[LaneStep, ...]
    chunks: tuple[Request, ...]
    num_decodes: int
    num_tokens: int
    last_tokens: tuple[Request, ...]
    """Decoding requests whose token of this step is the last that fits."""
    strays: set[Request]
    """Requests that have left since, or have another client now."""

    @property
    def requests(self) -> list[Request]:
        """Of all rows, in their order."""
        return [request for lane in self.lanes for request in lane.view.requests] + list(self.chunks)

    def request_at(self, row: int) -> Request:
        return self.requests[row]


class Budget:
    """Tokens that one step may still take from prompts.

    New prompts wait their turn for the sake of running answers. A request that has had outputs already,
    and must compute them again, is itself a running answer: only the whole step's budget limits it.
    """

    def __init__(self, total: int, new: int) -> None:
        self._total, self._new = total, new
        self._bytes = MOST_STARTED_BYTES
        self.started: list[SequenceStart] = []

    def start(self, start: SequenceStart) -> None:
        """It carries all its ids, however few of them this step computes."""
        self.started.append(start)
        self._bytes -= len(start.token_ids) + len(start.block_table)

    def of(self, request: Request) -> int:
        if self._bytes <= 0 and request.state is State.WAITING:
            return 0
        return self._total if request.num_output_tokens else min(self._total, self._new)

    def spend(self, count: int) -> None:
        self._total -= count
        self._new -= count


def start_of(request: Request) -> SequenceStart:
    """The request, which has just been given its slot and blocks, as its worker must know it."""
    return SequenceStart(
        slot=request.slot,
        token_ids=request.token_ids.tobytes(),
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed_tokens=request.num_computed_tokens,
        block_table=columns.pack_ids(request.block_table),
        sampling=request.sampling,
        adapter=request.adapter,
    )
