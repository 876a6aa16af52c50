"""Is a process slow, hung or stopped? Knows no process, no memory and no clock: it is told what a look shows.

    busy, and its beats have changed since the last look ──▶ fine, and nothing is held against it
    busy, and they have not: it has stalled since then
        for longer than its budget ────────────────────────▶ SLOW, once: worth a line and its stacks
        for longer than HANG_BUDGETS budgets ──────────────▶ HUNG
    stopped by a signal for STOPPED_S ─────────────────────▶ STOPPED

Only time in which the process could have done something counts. A look adds LOOK_INTERVAL_S at most, so
that whoever looks may itself have been stopped, starved or suspended meanwhile; and what the process's
threads spent waiting for a CPU is taken off, one of which the main one may have been waiting for.
"""

from enum import Enum, auto

from protocol.progress import Reading

LOOK_INTERVAL_S = 0.25
STOPPED_S = 0.5
"""Two looks: a whole tree that is stopped is also continued within one."""
HANG_BUDGETS = 2.0


class Verdict(Enum):
    FINE = auto()
    SLOW = auto()
    HUNG = auto()
    STOPPED = auto()


class Liveness:
    """What is known of one process."""

    def __init__(self) -> None:
        self.stall_s = 0.0
        """For how long it has now been at one thing."""
        self._stopped_s: float | None = None
        self._beats = -1
        self._waited_s = 0.0
        self._was_slow = False

    def on_stop(self) -> None:
        """A signal has stopped it."""
        self._stopped_s = 0.0

    def on_continue(self) -> None:
        """It runs again."""
        self._stopped_s = None

    def look(self, reading: Reading, waited_s: float, since_s: float) -> Verdict:
        """What to make of its row. Seconds: waited for a CPU, since its start; since the last look."""
        passed_s = min(since_s, LOOK_INTERVAL_S)
        if self._stopped_s is not None:
            self._stopped_s += passed_s
            return Verdict.STOPPED if self._stopped_s >= STOPPED_S else Verdict.FINE
        starved_s, self._waited_s = max(waited_s - self._waited_s, 0.0), waited_s
        if not reading.budget_s or reading.beats != self._beats:
            self._beats, self.stall_s, self._was_slow = reading.beats, 0.0, False
            return Verdict.FINE
        self.stall_s = max(self.stall_s + passed_s - starved_s, 0.0)
        if self.stall_s > HANG_BUDGETS * reading.budget_s:
            return Verdict.HUNG
        if self.stall_s > reading.budget_s and not self._was_slow:
            self._was_slow = True
            return Verdict.SLOW
        return Verdict.FINE
