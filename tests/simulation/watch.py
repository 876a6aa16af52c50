"""The supervisor's look at the progress board: the real judgement of liveness, in simulated time."""

from collections.abc import Callable

from scripts.liveness import LOOK_INTERVAL_S, Liveness, Verdict

from .network import Agenda
from .process import Process

_LONGEST_VERDICT_S = 70.0
"""Twice the budget of a step when none was measured yet, and some."""


class Watch:
    """Looks while something may hang; where nothing does, there is nothing to see."""

    def __init__(
        self,
        agenda: Agenda,
        processes: Callable[[], list[Process]],
        hangs: Callable[[Process], bool],
        kill: Callable[[Process], object],
    ) -> None:
        """`hangs`: whether a verdict against this process would be right."""
        self.verdicts = 0
        """Processes killed because they hung."""
        self._agenda = agenda
        self._processes = processes
        self._hangs = hangs
        self._kill = kill
        self._lives: dict[Process, Liveness] = {}
        self._stopped: set[Process] = set()
        """As far as the supervisor knows."""
        self._looked_at = 0.0
        self._look_until = 0.0
        self._looking = False

    def forget(self, process: Process) -> None:
        """It is dead."""
        self._lives.pop(process, None)

    def look_for(self, seconds: float) -> None:
        """From now on, so long."""
        self._look_until = max(self._look_until, self._agenda.now + min(seconds, _LONGEST_VERDICT_S))
        if not self._looking:
            self._looking, self._looked_at = True, self._agenda.now
            self._look()

    def _look(self) -> None:
        now = self._agenda.now
        since_s, self._looked_at = now - self._looked_at, now
        for process in self._processes():
            life = self._lives.setdefault(process, Liveness())
            self._follow_stops(process, life)
            verdict = life.look(process.reading(), 0.0, since_s)
            if verdict in (Verdict.HUNG, Verdict.STOPPED):
                assert self._hangs(process), f"{process.kind} was killed, and it was only slow"
                self.verdicts += 1
                self._kill(process)
        self._looking = now < self._look_until
        for process in [] if self._looking else self._processes():
            assert not process.hung, f"{process.kind} hangs, and nobody has seen it"
        if self._looking:
            self._agenda.after(LOOK_INTERVAL_S, b"look", self._look)

    def _follow_stops(self, process: Process, life: Liveness) -> None:
        if process.stopped and process not in self._stopped:
            self._stopped.add(process)
            life.on_stop()
        elif not process.stopped and process in self._stopped:
            self._stopped.remove(process)
            life.on_continue()
