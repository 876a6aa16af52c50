"""DecodeBatch: the requests that get one token in every step, in columns, one lane per client.

    lane of client A   requests     r7  r9  r12      what a step and its Outputs need of them, kept as packed
                       slots         3   0   5       arrays while requests come and go, so that a step costs
                       request_ids   7   9  12       a few copies of memory and no visit to any request
                       indexes       0  41   3       (output index of the token that the next step samples)
                       unread       12  99   7       results, a row per step; they are taken to their requests
                                     4  12  31       when one of these is asked for its tokens

Knows nothing of blocks, budgets or plans.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from operator import call

from msgspec import Struct

from protocol import columns

from .clients import Client
from .request import Request

_MOST_UNREAD = 64
"""Rows of a lane."""
_MANY_UNREAD = 4
"""Rows, from which on a slice per request costs less than an append per token."""


class LaneView(Struct, frozen=True):
    """A lane as it was when a step was planned."""

    client: Client
    requests: tuple[Request, ...]
    appends: tuple[Callable[[int], None], ...]
    """`token_ids.append` of each request"""
    unread: "Unread"
    stop_token_ids: frozenset[int]
    """At least those of every request: a token outside ends none of them."""
    slots: bytes
    request_ids: bytes


class LaneStep(Struct, frozen=True):
    """A lane's share of one step."""

    view: LaneView
    indexes: bytes


class Unread:
    """Tokens of decoding requests that nobody has looked at yet. A step then visits no request at all."""

    def __init__(self) -> None:
        self._view: LaneView | None = None
        self._rows = array(columns.INT32)

    def add(self, view: LaneView, token_ids: "array[int]") -> None:
        """The next token of each request in the view, which is one of this lane."""
        if view is not self._view:
            self.bring_home()
            self._view = view
        self._rows += token_ids
        if len(self._rows) >= _MOST_UNREAD * len(token_ids):
            self.bring_home()

    def bring_home(self) -> None:
        """Append what is here to the `token_ids` of its requests."""
        if not self._rows:
            return
        assert self._view is not None
        rows, self._rows = self._rows, array(columns.INT32)
        requests, appends = self._view.requests, self._view.appends
        width = len(requests)
        if len(rows) < _MANY_UNREAD * width:
            for first in range(0, len(rows), width):
                deque(map(call, appends, rows[first : first + width]), maxlen=0)
        else:
            for place, request in enumerate(requests):
                request.known_token_ids += rows[place::width]


class _Lane:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.unread = Unread()
        self.requests: list[Request] = []
        self.appends: list[Callable[[int], None]] = []
        self.stop_token_ids: frozenset[int] = frozenset()
        self.slots = array(columns.INT32)
        self.request_ids = array(columns.UINT64)
        self.indexes = array(columns.UINT32)
        self._view: LaneView | None = None

    def add(self, request: Request, index: int) -> None:
        self._view = None
        self.requests.append(request)
        self.appends.append(request.token_ids.append)
        request.unread = self.unread
        self.slots.append(request.slot)
        self.request_ids.append(request.request_id)
        self.indexes.append(index)
        if not request.stop_token_ids <= self.stop_token_ids:
            self.stop_token_ids |= request.stop_token_ids

    def remove(self, request: Request) -> None:
        self._view = None
        row = self.requests.index(request)
        for column in (self.requests, self.appends, self.slots, self.request_ids, self.indexes):
            del column[row]

    def step(self) -> LaneStep:
        view = self._view
        if view is None:
            view = self._view = LaneView(
                self.client,
                tuple(self.requests),
                tuple(self.appends),
                self.unread,
                self.stop_token_ids,
                self.slots.tobytes(),
                self.request_ids.tobytes(),
            )
        return LaneStep(view, self.indexes.tobytes())

    def advance(self) -> None:
        """Add one to each index: packed little-endian numbers are one long integer, and so are the ones."""
        data = self.indexes.tobytes()
        ones = int.from_bytes(_ONE * len(self.indexes), "little")
        total = int.from_bytes(data, "little") + ones
        self.indexes = columns.unpack(columns.UINT32, total.to_bytes(len(data), "little"))


class DecodeBatch:
    """Requests keep their order within a lane, and lanes the order in which they began."""

    def __init__(self) -> None:
        self._lanes: dict[Client, _Lane] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        for lane in self._lanes.values():
            yield from lane.requests

    def add(self, request: Request, index: int) -> None:
        """From now on it is part of every step; `index` is that of the token before its first one there."""
        lane = self._lanes.get(request.client)
        if lane is None:
            lane = self._lanes[request.client] = _Lane(request.client)
        lane.add(request, index)
        self._size += 1

    def remove(self, request: Request) -> None:
        lane = self._lanes[request.client]
        lane.remove(request)
        if not lane.requests:
            del self._lanes[request.client]
        self._size -= 1

    def index_of(self, request: Request) -> int:
        """The output index of its token in the next step."""
        lane = self._lanes[request.client]
        return lane.indexes[lane.requests.index(request)]

    def steps(self) -> tuple[LaneStep, ...]:
        """Every lane as the next step will see it."""
        return tuple([lane.step() for lane in self._lanes.values()])

    def advance(self) -> None:
        """The step has been planned: the next one samples the token after."""
        for lane in self._lanes.values():
            lane.advance()


_ONE = columns.pack(columns.UINT32, [1])
