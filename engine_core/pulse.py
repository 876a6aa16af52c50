"""Pulse: tells the supervisor every few seconds what the engine core did, as long as it has work.

It looks when the loop turns, and wakes nobody: an idle engine core says nothing.
"""

from collections.abc import Callable

from protocol.control import Busy
from protocol.messages import EngineStats


class Pulse:
    """`interval_s` 0: never."""

    def __init__(
        self, interval_s: float, stats: Callable[[], EngineStats], send: Callable[[Busy], object]
    ) -> None:
        self._interval_s = interval_s
        self._stats = stats
        self._send = send
        self._since = 0.0
        self._before: EngineStats | None = None
        """None: idle."""

    def look(self, *, busy: bool, now: float) -> None:
        """To be called whenever the loop turns. `now` in seconds."""
        if not busy:
            self._before = None
        elif self._before is None:
            if self._interval_s:
                self._since, self._before = now, self._stats()
        elif now >= self._since + self._interval_s:
            stats = self._stats()
            self._send(Busy(now - self._since, self._before, stats))
            self._since, self._before = now, stats
