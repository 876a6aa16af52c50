"""What a SIGHUP means: that our terminal is gone, or that an operator wants the frontends replaced.

had no terminal (systemd, container), or it is still there ──▶ ROLL
our terminal has just gone (window closed, ssh broke off)  ──▶ STOP, as SIGTERM does
                             … and we were started by nohup ──▶ GO_ON; the next one is an operator's
"""

import os
import signal
from enum import Enum, auto


class Meaning(Enum):
    ROLL = auto()
    STOP = auto()
    GO_ON = auto()


class Hangup:
    """Made before SIGHUP gets a handler: that is how nohup shows."""

    def __init__(self) -> None:
        self._has_terminal = _has_terminal()
        self._nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def meaning(self) -> Meaning:
        """Of a SIGHUP that has just come. A terminal is lost once."""
        had, self._has_terminal = self._has_terminal, self._has_terminal and _has_terminal()
        if not had or self._has_terminal:
            return Meaning.ROLL
        return Meaning.GO_ON if self._nohup else Meaning.STOP


def _has_terminal() -> bool:
    """A controlling one. The kernel takes it from every process of the session when it hangs up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
