"""Something died: start it again, after how long, or give up. Knows no process, clock or signal.

    died ── of its configuration, or of too little memory while loading ────▶ GiveUp
         ── exited by itself, and none of its kind was ever ready ──────────▶ GiveUp
            (but not with a code that says that the next one may do better)
         ── more than max_restarts deaths of this kind within the window ───▶ GiveUp
         ── more than max_restarts starts in a row that never got ready ────▶ GiveUp
         ── otherwise ──────────────────────────────────────────────────────▶ Restart(delay)

The second rule is for a defect that every start would meet: better to say so now than after a minute.
The fourth is for starts so slow (a large checkpoint) that the window never holds enough of them.
What had been ready starts again at once: open streams wait for it. What dies while starting is tried
again at once the first time, and then after a delay that doubles.
"""

from collections import defaultdict, deque
from typing import Literal

from msgspec import Struct

from protocol.errors import DEVICE_EXIT_CODE, PROTOCOL_EXIT_CODE, OutOfMemory, StartupError

Kind = Literal["engine_core", "worker", "frontend"]

CONFIGURATION_EXIT_CODES = frozenset({StartupError.exit_code, OutOfMemory.exit_code})
"""A child that exits with one of these while it starts would do so again."""
PASSING_EXIT_CODES = frozenset({DEVICE_EXIT_CODE, PROTOCOL_EXIT_CODE})
"""Another process on the same device, or with a new link, may well succeed."""
EXIT_CODES = {
    DEVICE_EXIT_CODE: "its device is in an unusable state",
    PROTOCOL_EXIT_CODE: "its peer broke the protocol",
    OutOfMemory.exit_code: "out of memory",
    StartupError.exit_code: "a mistake in the configuration or in a file",
}
"""What they mean, for people."""

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 10.0


class Restart(Struct, frozen=True):
    """Start it again after this long."""

    delay_s: float


class GiveUp(Struct, frozen=True):
    """Stop the server. `why` is empty when the death speaks for itself."""

    why: str = ""


class RestartPolicy:
    """The deaths of each kind of process, and what follows from them."""

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._deaths: defaultdict[Kind, deque[float]] = defaultdict(deque)
        self._failed_starts: defaultdict[Kind, int] = defaultdict(int)
        self._ever_ready: set[Kind] = set()

    def on_ready(self, kind: Kind) -> None:
        """A process of this kind (for workers: the whole group) serves."""
        self._failed_starts[kind] = 0
        self._ever_ready.add(kind)

    def on_death(self, kind: Kind, exit_code: int, was_ready: bool, now: float) -> Restart | GiveUp:
        """A process of this kind is gone. `exit_code` is negative for a signal, `now` in seconds."""
        if _is_final(exit_code, was_ready, kind in self._ever_ready):
            return GiveUp()
        deaths = self._deaths[kind]
        deaths.append(now)
        while deaths[0] <= now - self._window_s:
            deaths.popleft()
        if not was_ready:
            self._failed_starts[kind] += 1
        failed_starts = self._failed_starts[kind]
        if self._max_restarts == 0:
            return GiveUp("restarts are off (--max-restarts 0)")
        if len(deaths) > self._max_restarts:
            return GiveUp(
                f"{len(deaths)} deaths within {self._window_s:g} s (--max-restarts {self._max_restarts})"
            )
        if failed_starts > self._max_restarts:
            return GiveUp(f"{failed_starts} starts in a row failed (--max-restarts {self._max_restarts})")
        if failed_starts <= 1:
            return Restart(0.0)
        return Restart(min(FIRST_DELAY_S * 2 ** (failed_starts - 2), LONGEST_DELAY_S))


def _is_final(exit_code: int, was_ready: bool, ever_ready: bool) -> bool:
    if exit_code == OutOfMemory.exit_code:
        return not was_ready
    if exit_code == StartupError.exit_code:
        return True
    return exit_code >= 0 and exit_code not in PASSING_EXIT_CODES and not ever_ready
