"""Signals as bytes on a descriptor, for a selector. A handler does nothing but wake it.

SIGHUP is among them even under nohup: it stops nothing.
"""

import signal
import socket
from types import FrameType
from typing import Self


class SignalPipe:
    """While entered, the signals that a server knows are read here and have no other effect."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _wake) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        try:
            return [signal.Signals(number) for number in self._reader.recv(64)]
        except BlockingIOError:
            return []


def _wake(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor has the number."""
