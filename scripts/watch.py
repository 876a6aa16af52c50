"""Looks at the children: their rows of the progress board, their stops, their waits for a CPU.

Says who is slow, hung or stopped (liveness.py decides), and does nothing about it. A look at an idle
server costs one system call per child; rows that are busy cost a read of /proc per thread.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import glob

from protocol.progress import Board

from .liveness import LOOK_INTERVAL_S, Liveness, Verdict
from .process import Child


class Watch:
    """One for the whole server."""

    def __init__(self, board: Board, now: float, *, enabled: bool) -> None:
        """`enabled` False: nothing is ever looked at. `now` is time.monotonic()."""
        self.next_look = now if enabled else math.inf
        """When to call `look`."""
        self._board = board
        self._looked_at = now
        self._lives: defaultdict[int, Liveness] = defaultdict(Liveness)
        """By row."""

    def look(self, children: Iterable[Child], now: float) -> Iterator[tuple[Child, Verdict, float]]:
        """(child, verdict, seconds for which it has been at one thing) of those that are not fine."""
        since_s, self._looked_at = now - self._looked_at, now
        self.next_look = now + LOOK_INTERVAL_S
        for child in children:
            life = self._lives[child.row]
            _follow_stops(child, life)
            reading = self._board.read(child.row)
            waited_s = waited_for_cpu_s(child.pid) if reading.budget_s else 0.0
            verdict = life.look(reading, waited_s, since_s)
            if verdict is Verdict.STOPPED and not _is_stopped(child.pid):
                life.on_continue()  # that news was lost
            elif verdict is not Verdict.FINE:
                yield child, verdict, life.stall_s

    def count_restart(self, kind: str) -> None:
        """For whoever reads the board."""
        self._board.count_restart(kind)

    def close(self) -> None:
        """From here on, nothing is looked at."""
        self.next_look = math.inf

    def forget(self, child: Child) -> None:
        """It is gone; its row may have another writer."""
        self._lives.pop(child.row, None)
        self._board.clear(child.row)


def _follow_stops(child: Child, life: Liveness) -> None:
    """Job control's news of this child. Its exit is left for whoever reaps it."""
    news = os.WSTOPPED | os.WCONTINUED | os.WNOHANG
    with suppress(ChildProcessError):  # it is dead
        while (event := os.waitid(os.P_PIDFD, child.pidfd, news)) is not None:
            if event.si_code == os.CLD_CONTINUED:
                life.on_continue()
            else:
                life.on_stop()


def _is_stopped(pid: int) -> bool:
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] == ["T"]


def waited_for_cpu_s(pid: int) -> float:
    """Of all its threads, since their starts: the main one may wait for another, and that one for a CPU.

    0.0 where the kernel does not count it.
    """
    waited_ns = 0
    for path in glob(f"/proc/{pid}/task/*/schedstat"):
        fields = _read(path).split()
        waited_ns += int(fields[1]) if len(fields) == 3 else 0
    return waited_ns / 1e9


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # it is gone
        return ""
