"""Replaces the frontends by new processes, one after the other, while the old ones finish their streams.

    successor starts on the same listener ──ready──▶ the old one retires: accepts no more, and exits in time
                     └──dies: the old one stays, and so do those whose turn had not come

Knows no stage of the server and no selector: whoever owns the units says what has happened to them.
"""

from collections import deque
from collections.abc import Callable

from protocol.control import Retire
from protocol.errors import StartupError

from .terminal import Terminal
from .units import Unit


class Roll:
    """At most one is going on, and it lasts until the last of the old ones is gone."""

    def __init__(self, units: list[Unit], start: Callable[[Unit], None], terminal: Terminal) -> None:
        """`units` are all of the server's; successors come into the list, and those replaced go."""
        self._units = units
        self._start = start
        self._terminal = terminal
        self._waiting: deque[Unit] = deque()

    def begin(self) -> None:
        """Ignored while one goes on: each frontend has one successor at a time."""
        if self._waiting or any(unit.is_rolling for unit in self._units):
            self._terminal.log("warning", "SIGHUP: ignored: the last one's frontends have not all finished")
            return
        self._terminal.log("info", "SIGHUP: replacing the frontends, one after the other")
        self._waiting.extend(unit for unit in self._units if unit.kind == "frontend")
        self._next()

    def on_ready(self, successor: Unit, old: Unit) -> None:
        """The successor serves: whom it replaces may go."""
        successor.replaces = None
        old.retired, old.restart_at = True, None
        text = f"{successor.name} is replaced (pid {successor.children[0].pid})"
        if old.is_ready:
            text += f"; pid {old.children[0].pid} finishes its streams"
            old.send(Retire())
        else:
            old.kill()  # it died meanwhile, and what was started in its place has nothing to finish
        self._terminal.log("info", text)
        if not old.children:
            self._units.remove(old)
        self._next()

    def on_gone(self, unit: Unit, what: str, exit_code: int) -> None:
        """One that was replaced has ended, or a successor never got ready; `what` says how."""
        self._units.remove(unit)
        if unit.retired:
            self._terminal.log("warning" if exit_code else "info", f"{what}; its successor serves")
        else:
            self._terminal.log("error", f"{what} before it was ready; the frontends that serve stay")
            self._waiting.clear()

    def _next(self) -> None:
        while self._waiting:
            old = self._waiting.popleft()
            if not old.is_ready:
                continue  # it died, and what is started in its place is new anyway
            successor = old.successor()
            self._units.insert(self._units.index(old) + 1, successor)
            try:
                self._start(successor)
            except StartupError as error:
                self.on_gone(successor, error.message, error.exit_code)
            return
