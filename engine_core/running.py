"""Running: the requests that have a slot, by what their next step takes, and how far each has come.

    prefilling    some of its known tokens are left to compute
    decoding      one token in every step; the calendar says before which of them it needs a decision
    constrained   one token in a step, if a grammar says what it may be
    spent         all is planned, and a result ends it

Knows neither blocks nor budgets.
"""

from collections.abc import Iterator

from protocol.messages import EngineFacts

from .calendar import Calendar
from .clients import Client
from .decode_batch import DecodeBatch
from .request import Request, State


class Running:
    """Of one worker group in one epoch."""

    def __init__(self, facts: EngineFacts, step: int) -> None:
        self.step = step
        """The last one that was planned."""
        self.decoding = DecodeBatch()
        self.calendar = Calendar(facts.block_size)
        self.prefilling: dict[Request, None] = {}
        self.constrained: dict[Request, None] = {}
        self.spent: dict[Request, None] = {}
        self.free_slots = list(range(facts.max_num_seqs - 1, -1, -1))

    def __iter__(self) -> Iterator[Request]:
        yield from self.decoding
        yield from self.prefilling
        yield from self.constrained
        yield from self.spent

    def __len__(self) -> int:
        return len(self.decoding) + len(self.prefilling) + len(self.constrained) + len(self.spent)

    def enter(self, request: Request) -> None:
        """Its prompt comes first. There is a free slot."""
        request.slot = self.free_slots.pop()
        request.state = State.RUNNING
        self.prefilling[request] = None

    def leave(self, request: Request) -> int:
        """The slot that it had."""
        if request.is_decoding:
            self.stop_decoding(request)
        self.prefilling.pop(request, None)
        self.constrained.pop(request, None)
        self.spent.pop(request, None)
        slot, request.slot = request.slot, -1
        self.free_slots.append(slot)
        return slot

    def move(self, request: Request, client: Client, request_id: int) -> None:
        """Another client has it now, under another id."""
        decoding = request.is_decoding
        if decoding:
            index = self.decoding.index_of(request)
            self.decoding.remove(request)
        request.client, request.request_id = client, request_id
        if decoding:
            self.decoding.add(request, index)

    def begin_decoding(self, request: Request) -> None:
        """From the step after the one that is being planned."""
        self.calendar.begin(request, self.step + 1)
        self.decoding.add(request, request.num_output_tokens)

    def stop_decoding(self, request: Request) -> None:
        request.num_computed_tokens = self.num_computed_tokens(request)
        self.decoding.remove(request)
        self.calendar.end(request)

    def num_computed_tokens(self, request: Request) -> int:
        """Tokens whose KV is planned. Each step computes one more of every decoding request, so theirs
        follow from the step number, and a step costs nothing per request that needs no decision."""
        since = self.step - request.decoding_since if request.due_step >= 0 else 0
        return request.num_computed_tokens + since

    def advance(self) -> tuple[Request, ...]:
        """One more step is planned. Decoding requests whose token of it is the last that fits."""
        self.step += 1
        self.decoding.advance()
        return self.calendar.take_last(self.step)
