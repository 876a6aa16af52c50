"""WaitingQueue: who runs next. By priority, then fair share among tenants, then arrival.

Fair share is start-time fair queueing (Goyal, Vin, Cheng, 1996): each tenant has a virtual time that
advances by the tokens of each of its requests that is admitted; the tenant that is furthest behind is
next, and one that was idle starts at the present, not in the past.
"""

import heapq
from collections.abc import Iterator
from itertools import count

from .request import Request, State


class _Tenant:
    def __init__(self, virtual_time: float) -> None:
        self.virtual_time = virtual_time
        self.heap: list[tuple[int, int, Request]] = []


class WaitingQueue:
    """Requests that wait. Removal is lazy: a request that has ended is skipped when it comes up."""

    def __init__(self) -> None:
        self._levels: dict[int, dict[str, _Tenant]] = {}
        self._virtual_time = 0.0
        self._size = 0
        self._dead = 0
        self.num_tokens = 0
        """Of all that waits: what has to be computed before the last of them has its next token."""
        self._tie = count()
        self._held: dict[Request, None] = {}
        """Those that wait for something else first, and so in no heap."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        yield from self._held
        for tenants in self._levels.values():
            for tenant in tenants.values():
                yield from (request for _, _, request in tenant.heap if request.state is State.WAITING)

    def push(self, request: Request) -> None:
        """Queue a request; one that was preempted keeps its arrival and so its place. One whose grammar is
        being asked is counted in, and must not run before `release`."""
        self._size += 1
        self.num_tokens += request.num_tokens
        if request.asks_grammar:
            self._held[request] = None
            return
        tenants = self._levels.setdefault(request.priority, {})
        tenant = tenants.get(request.tenant)
        if tenant is None:
            tenant = tenants[request.tenant] = _Tenant(self._virtual_time)
        heapq.heappush(tenant.heap, (request.arrival, next(self._tie), request))

    def release(self, request: Request) -> None:
        """Its grammar has answered: queue a request, if it was held."""
        if request in self._held:
            del self._held[request]
            self._size -= 1
            self.num_tokens -= request.num_tokens
            self.push(request)

    def discard(self, request: Request) -> None:
        """Count a waiting request out; its state must already be ENDED."""
        assert request.state is State.ENDED
        self._size -= 1
        if request in self._held:
            del self._held[request]
        else:
            self._dead += 1
        if self._dead > self._size + 1000:
            self._bury()
        self.num_tokens -= request.num_tokens

    def _bury(self) -> None:
        """Take the ended ones out of every heap. Costs O(1) per ended request."""
        for tenants in self._levels.values():
            for tenant in tenants.values():
                tenant.heap = [entry for entry in tenant.heap if entry[2].state is State.WAITING]
                heapq.heapify(tenant.heap)
        self._dead = 0

    def peek(self) -> Request | None:
        """The next request, or None."""
        tenant = self._next_tenant()
        return None if tenant is None else tenant.heap[0][2]

    def pop(self) -> Request:
        """Remove the request that `peek` returned, and charge its tenant."""
        tenant = self._next_tenant()
        assert tenant is not None
        _, _, request = heapq.heappop(tenant.heap)
        self._size -= 1
        self.num_tokens -= request.num_tokens
        self._virtual_time = max(self._virtual_time, tenant.virtual_time)
        tenant.virtual_time = max(tenant.virtual_time, self._virtual_time) + request.num_tokens
        return request

    def _next_tenant(self) -> _Tenant | None:
        for priority in sorted(self._levels):
            tenants = self._levels[priority]
            for name in list(tenants):
                heap = tenants[name].heap
                while heap and heap[0][2].state is not State.WAITING:
                    heapq.heappop(heap)
                if not heap and tenants[name].virtual_time <= self._virtual_time:
                    del tenants[name]  # caught up: it would start at the present anyway
            ready = [tenant for tenant in tenants.values() if tenant.heap]
            if ready:
                return min(ready, key=lambda tenant: (tenant.virtual_time, tenant.heap[0][0]))
            if not tenants:
                del self._levels[priority]
        return None
