"""Which processes there are, and what the run folder says of them. Starts none and stops none."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from .process import Child
from .restart_policy import Kind
from .run_dir import RunDir
from .terminal import Terminal
from .units import Unit

T = TypeVar("T")


class ProcessTable:
    """A view of the supervisor's units, which it alone changes."""

    def __init__(self, units: Sequence[Unit], run_dir: RunDir, terminal: Terminal) -> None:
        self._units = units
        self._run_dir = run_dir
        self._terminal = terminal

    def children(self, kind: Kind | None = None) -> list[Child]:
        """All, or those of one kind."""
        return [child for unit in self._units if kind in (None, unit.kind) for child in unit.children]

    def pids(self) -> dict[str, list[int]]:
        """By kind, the supervisor's own first."""
        pids: defaultdict[str, list[int]] = defaultdict(list, supervisor=[os.getpid()])
        for unit in self._units:
            pids[unit.kind] += [child.pid for child in unit.children]
        return dict(pids)

    def write_pids(self) -> None:
        self._write(self._run_dir.write_pids, self.pids())

    def write_endpoint(self, endpoint: str) -> None:
        """Where the engine core is."""
        self._write(self._run_dir.write_endpoint, endpoint)

    def _write(self, write: Callable[[T], None], content: T) -> None:
        """Into the run folder. Those who look there miss it; the processes of this server do without."""
        try:
            write(content)
        except OSError as error:
            self._terminal.log("warning", f"cannot write into {self._run_dir.path}: {error.strerror}")
