"""Suspects: requests that were in a step that went wrong, and the order in which they prove themselves.

    in a step that failed, or with which a worker died ──▶ suspect ──alone, past that point──▶ cleared
                                                               └──alone, and it happens again──▶ culprit

Running alone costs a suspect's neighbours a pause, so it takes evidence: a step that failed by itself, or
a worker that died by itself, is enough. A worker that was killed from outside counts half: who is in a
step at two kills without having got past the first is a suspect, and a culprit only when killed twice alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from .request import Request

_PAST_THE_CRASH = 2
"""Tokens that a suspect must produce alone: as many steps as can have been in flight."""
_EVIDENCE = 2


class Suspects:
    """In the order in which they run. Only the first one may run."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    @property
    def first(self) -> Request | None:
        return self._queue[0] if self._queue else None

    def accuse(self, requests: Iterable[Request], *, by_itself: bool) -> Request | None:
        """A step with these requests went wrong. Returns the culprit, if it is known by now."""
        requests = list(requests)
        culprit = None
        for request in requests:
            if not request.suspect and request.num_tokens >= request.alone_until:
                request.crashes = 0  # it has got past where it was the last time
            request.crashes += _EVIDENCE if by_itself else 1
            if request.suspect:
                request.crashes_alone += _EVIDENCE if by_itself else 1
                if request.crashes_alone >= _EVIDENCE:
                    culprit = request
            elif request.crashes >= _EVIDENCE:
                request.suspect = True
                self._queue.append(request)
            request.alone_until = request.num_tokens + _PAST_THE_CRASH
        return culprit

    def clear(self, request: Request) -> None:
        """It is harmless, or it has ended."""
        self._queue.remove(request)
        request.suspect = False
        request.crashes = request.crashes_alone = 0
