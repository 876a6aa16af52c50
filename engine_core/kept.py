"""Kept: requests with a key, which outlive their clients. Whoever comes with the same key takes them over.

    submitted ──client gone──▶ detached: goes on without a reader ─┐ taken over by another client,
        └────────────ended──▶ its answer is kept ──────────────────┘ or forgotten after the grace time

Bounded: beyond `most` requests that nobody reads or that have ended, the one closest to its end of grace
is forgotten first. Knows nothing of sockets; time is an argument, in seconds.
"""

import heapq
import itertools

from .request import Request

MOST_KEPT = 1024
Key = tuple[str, str]
"""(tenant, key): one tenant cannot reach another's answers."""


class Kept:
    """At most one request per key."""

    def __init__(self, grace_s: float, most: int = MOST_KEPT) -> None:
        self._grace_s = grace_s
        self._most = most
        self._requests: dict[Key, Request] = {}
        self._until: dict[Request, float] = {}
        self._heap: list[tuple[float, int, Request]] = []
        self._tie = itertools.count()

    def __len__(self) -> int:
        """Detached or ended ones."""
        return len(self._until)

    def find(self, tenant: str, key: str) -> Request | None:
        return self._requests.get((tenant, key)) if key else None

    def add(self, request: Request) -> None:
        """It has a client; its key must be free."""
        self._requests[request.tenant, request.key] = request

    def release(self, request: Request, now: float) -> list[Request]:
        """Its client is gone, or it has ended: the grace time begins. Returns what must go to make room."""
        until = self._until[request] = now + self._grace_s
        heapq.heappush(self._heap, (until, next(self._tie), request))
        crowded: list[Request] = []
        while len(self._until) > self._most and (oldest := self._pop()) is not None:
            crowded.append(oldest)
        return crowded

    def hold(self, request: Request) -> None:
        """Somebody reads it again."""
        self._until.pop(request, None)

    def forget(self, request: Request) -> None:
        """It failed, was aborted, or its time is over."""
        self._until.pop(request, None)
        if self._requests.get((request.tenant, request.key)) is request:
            del self._requests[request.tenant, request.key]

    def expired(self, now: float) -> list[Request]:
        """Forget those whose grace time is over, and return them."""
        found: list[Request] = []
        while (until := self.next_expiry) is not None and until <= now:
            request = self._pop()
            assert request is not None
            found.append(request)
        return found

    @property
    def next_expiry(self) -> float | None:
        """When `expired` next has something to do."""
        heap = self._heap
        while heap and self._until.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)  # held, forgotten or released again since
        return heap[0][0] if heap else None

    def _pop(self) -> Request | None:
        if self.next_expiry is None:
            return None
        _, _, request = heapq.heappop(self._heap)
        self.forget(request)
        return request
