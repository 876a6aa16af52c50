"""A process under a virtual clock, whatever it does in its turns.

It takes what has arrived in turns. It may be killed between two turns or between two messages of one
turn, and it may hang: then it takes no turn until it is continued, or killed.
"""

import math
from collections.abc import Callable
from functools import partial

from protocol.progress import Reading
from scripts.restart_policy import Kind

from .network import Agenda

SIGKILL, SIGSEGV = -9, -11
TURN_S = 0.0003
"""From a message's arrival to the turn that takes it."""
_TURN_BUDGET_S = 0.75


class Died(BaseException):
    """Out of a send: the process was killed in the middle of a turn."""


class Process:
    """What all have in common. `on_exit(process, exit_code)` is called once."""

    kind: Kind

    def __init__(self, agenda: Agenda, incarnation: int, on_exit: Callable[["Process", int], object]) -> None:
        self.agenda = agenda
        self.incarnation = incarnation
        self.alive = True
        self.ready = self.was_ready = False
        self.stopped = False
        """Hangs because of a signal, which the supervisor is told of."""
        self.sends_left: int | None = None
        """Messages until it is killed; None: it is not going to be."""
        self._on_exit = on_exit
        self._hung_until = 0.0
        self._next_turn = math.inf
        self._beats = 0

    @property
    def hung(self) -> bool:
        return self.agenda.now < self._hung_until

    def hang(self, seconds: float, *, stopped: bool) -> None:
        if self.alive and not self.hung:
            self._hung_until, self.stopped = self.agenda.now + seconds, stopped
            if seconds < math.inf:
                self.agenda.at(self._hung_until, b"continue", self._go_on)

    def go_on(self) -> None:
        """Continue at once."""
        self._hung_until = min(self._hung_until, self.agenda.now)
        self._go_on()

    def exit(self, exit_code: int) -> None:
        if self.alive:
            self.alive = self.ready = False
            self.close()
            self._on_exit(self, exit_code)

    def reading(self) -> Reading:
        """Its row of the progress board."""
        return Reading(self._beats, self.budget_s or (_TURN_BUDGET_S if self.hung else 0.0))

    @property
    def budget_s(self) -> float:
        """Of what it is at; 0.0: it waits for work."""
        return 0.0

    def wake(self, time: float) -> None:
        """Take a turn at this time, or earlier."""
        if time < self._next_turn:
            self._next_turn = time
            self.agenda.at(time, self.kind.encode(), partial(self._wake_up, time))

    def close(self) -> None:
        """Its sockets."""

    def turn(self) -> None:
        raise NotImplementedError

    def count_send(self) -> None:
        """To be called before each message is sent."""
        if self.sends_left is not None:
            self.sends_left -= 1
            if self.sends_left < 0:
                raise Died

    def _go_on(self) -> None:
        if not self.hung:
            self.stopped = False
            self.wake(self.agenda.now)

    def _wake_up(self, time: float) -> None:
        if time != self._next_turn:
            return
        self._next_turn = math.inf
        if not self.alive or not self.ready or self.hung:
            return
        self._beats += 1
        try:
            self.turn()
        except Died:
            self.exit(SIGKILL)
