"""PlannedStep: a step in flight, as the scheduler remembers it until its result is back."""

from typing import NamedTuple

from msgspec import Struct, structs

from protocol import columns
from protocol.steps import SequenceStart, StepPlan

from .decode_batch import LaneStep
from .request import Request, State

MOST_STARTED_BYTES = 4 << 20
"""Of sequences that start in one step, before the last of them: a plan must fit a frame."""
MOST_MASK_BYTES = 4 << 20
"""Of masks of one step: 256 rows of a vocabulary of 128k tokens. The others wait a round."""
MOST_EMBEDDING_BYTES = 4 << 20
"""Of vectors that one step may bring, as its result must fit a frame: 256 of 4096 numbers."""


_ONE = columns.pack_ids([1])


def mask_bytes(vocab_size: int) -> int:
    """Of a row, see StepPlan.masks."""
    return -(-vocab_size // 32) * 4


class MaskedRow(NamedTuple):
    row: int
    request: Request
    position: int
    """Of the token that it samples."""


class PlannedStep(Struct, frozen=True):
    """A plan and the requests behind its rows: first those that decode, lane by lane, then the chunks."""

    plan: StepPlan
    lanes: tuple[LaneStep, ...]
    chunks: tuple[Request, ...]
    num_decodes: int
    num_tokens: int
    masked: tuple[MaskedRow, ...]
    """Rows that continue an answer to a grammar."""
    echoes: set[int]
    """Rows that sample, under masks of one token, what their requests have been told already. Complete once
    the masks are."""
    last_tokens: tuple[Request, ...]
    """Decoding requests whose token of this step is the last that fits."""
    strays: set[Request]
    """Requests that have left since, or have another client now."""

    @property
    def requests(self) -> list[Request]:
        """Of all rows, in their order."""
        return [request for lane in self.lanes for request in lane.view.requests] + list(self.chunks)

    def requests_in(self, slots: bytes) -> list[Request]:
        """Of the rows that have these slots."""
        wanted, ours = set(columns.unpack_ids(slots)), columns.unpack_ids(self.plan.scheduled_slots)
        return [request for slot, request in zip(ours, self.requests, strict=True) if slot in wanted]

    def request_at(self, row: int) -> Request:
        return self.requests[row]

    def masks(self, width: int) -> bytes | None:
        """Of the masked rows, `width` bytes each; None while a grammar has yet to say what one may sample."""
        masks, echoes = [], []
        for row, request, position in self.masked:
            grammar = request.grammar
            assert grammar is not None
            if grammar.mask_at == position and grammar.mask:
                masks.append(grammar.mask)
            elif request.state is State.ENDED:  # nobody reads what it samples
                masks.append(b"\xff" * width)
            elif position < request.num_tokens:  # has been forced upon it
                masks.append((1 << request.token_ids[position]).to_bytes(width, "little"))
                echoes.append(row)
            else:
                return None
        self.echoes.update(echoes)
        return b"".join(masks)


class Draft:
    """A step in the making: who takes part beside those that decode, and what may still be added.

    New prompts wait their turn for the sake of running answers. A request that has had outputs already,
    and must compute them again, is itself a running answer: only the whole step's budget limits it.
    """

    def __init__(self, num_decodes: int, total: int, new: int, released: list[int], mask_width: int) -> None:
        """Rows that decode. Tokens that the step may take besides theirs, and of new prompts. Slots that are
        released; emptied by `finish`. Bytes of a row's mask."""
        self._num_decodes = num_decodes
        self._mask_width = mask_width
        self._masked: list[MaskedRow] = []
        self._total, self._new = total, new
        self._started_bytes, self._mask_bytes = MOST_STARTED_BYTES, MOST_MASK_BYTES
        self._embedding_bytes = MOST_EMBEDDING_BYTES
        self._released = released
        self.chunks: list[tuple[Request, int]] = []
        """Requests and how many of their known tokens the step computes."""
        self.started: list[SequenceStart] = []
        self.grown_slots: list[int] = []
        self.grown_blocks: list[int] = []
        """For each slot there, a block of each KV group."""

    def start(self, request: Request) -> None:
        """It carries all its ids, however few of them this step computes."""
        start = start_of(request)
        request.num_sent_tokens = request.num_tokens
        self.started.append(start)
        self._started_bytes -= len(start.token_ids) + len(start.block_tables)

    def start_again(self, request: Request) -> None:
        """Tokens were forced upon it: a worker learns of known tokens when a sequence starts."""
        self._released.append(request.slot)
        self.start(request)

    def grow(self, request: Request, num_blocks: int = 1) -> None:
        """Its tables have just grown by so many blocks each."""
        for place in range(-num_blocks, 0):
            self.grown_slots.append(request.slot)
            for table in request.block_tables:
                self.grown_blocks.append(table[place])

    def of(self, request: Request) -> int:
        """How many tokens of this request the step may compute."""
        if self._started_bytes <= 0 and (request.state is State.WAITING or request.grammar is not None):
            return 0
        if request.grammar is not None and self._mask_bytes < self._mask_width:
            return 0
        if request.embedding_bytes > self._embedding_bytes:
            return 0
        return self._total if request.num_output_tokens else min(self._total, self._new)

    def add(self, request: Request, count: int) -> None:
        """The step computes so many of its tokens."""
        self.chunks.append((request, count))
        self._total -= count
        self._new -= count
        self._embedding_bytes -= request.embedding_bytes

    def next(self, request: Request) -> bool:
        """The step computes its newest token and samples the next one under its grammar. False: no room."""
        if self._total <= 0 or self._mask_bytes < self._mask_width or self._started_bytes <= 0:
            return False
        self.chunks.append((request, 1))
        self._total -= 1
        self._new -= 1
        request.num_computed_tokens += 1
        self.mask(request)
        return True

    def mask(self, request: Request) -> None:
        """The request, added last, samples under its grammar; a token that was forced is known already."""
        position = request.num_computed_tokens
        self._masked.append(MaskedRow(self._num_decodes + len(self.chunks) - 1, request, position))
        self._mask_bytes -= self._mask_width
        request.num_sent_tokens = position + 1

    def finish(
        self,
        epoch: int,
        step: int,
        lanes: tuple[LaneStep, ...],
        last_tokens: tuple[Request, ...],
    ) -> PlannedStep:
        """The step as it is sent, and as it is remembered; requests already count it as computed."""
        num_decodes = self._num_decodes
        slots, counts = b"".join([lane.view.slots for lane in lanes]), _ONE * num_decodes
        if self.chunks:
            slots += columns.pack_ids(request.slot for request, _ in self.chunks)
            counts += columns.pack_ids(count for _, count in self.chunks)
        plan = StepPlan(
            epoch=epoch,
            step=step,
            scheduled_slots=slots,
            scheduled_counts=counts,
            released=columns.pack_ids(self._released),
            started=tuple(self.started),
            grown_slots=columns.pack_ids(self.grown_slots),
            grown_blocks=columns.pack_ids(self.grown_blocks),
            masked_rows=columns.pack_ids([masked.row for masked in self._masked]),
        )
        self._released.clear()
        planned = PlannedStep(
            plan=plan,
            lanes=lanes,
            chunks=tuple([request for request, _ in self.chunks]),
            num_decodes=num_decodes,
            num_tokens=num_decodes + sum([count for _, count in self.chunks]),
            masked=tuple(self._masked),
            echoes=set(),
            last_tokens=last_tokens,
            strays=set(),
        )
        masks = planned.masks(self._mask_width)
        return structs.replace(planned, plan=structs.replace(plan, masks=masks)) if masks else planned


def start_of(request: Request) -> SequenceStart:
    """The request, which has just been given its slot and what is cached of it, as its worker must know it.
    Then its tables grow as everyone's."""
    return SequenceStart(
        slot=request.slot,
        token_ids=request.token_ids.tobytes(),
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed_tokens=request.num_computed_tokens,
        block_tables=b"".join([columns.pack_ids(table) for table in request.block_tables]),
        sampling=request.sampling,
        adapter=request.adapter,
        embed=request.embed,
    )
