"""What a child writes, line by line, as the objects of a JSON log. Only with --log-format json.

A thread per process reads its pipe, so that nobody waits for anybody. A line that is an object already (the
frontend's own log) keeps its fields; any other, a traceback or what a library says, becomes a message.
"""

import sys
import threading
from typing import IO, TextIO

import msgspec

from .terminal import utc

PATIENCE_S = 1.0


class ChildOutput:
    """Reads until the end of the pipe, which is the end of the process."""

    def __init__(self, name: str, pid: int, pipe: IO[bytes], out: TextIO | None = None) -> None:
        self._name, self._pid, self._pipe = name, pid, pipe
        self._out = out or sys.stderr
        self._thread = threading.Thread(target=self._run, name=f"output of {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Once the process has ended: until its last line is written. Not for long: what it has started
        itself may live on, and has the pipe, too."""
        self._thread.join(PATIENCE_S)
        if not self._thread.is_alive():
            self._pipe.close()

    def _run(self) -> None:
        for raw in self._pipe:
            if not raw.strip():
                continue
            try:
                self._out.write(as_object(raw, self._name, self._pid) + "\n")
                self._out.flush()
            except (OSError, ValueError):
                pass  # nobody reads any more; the child must not wait for that


def as_object(raw: bytes, process: str, pid: int) -> str:
    """A line of a process as an object."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        fields = {"time": utc(), "level": "info", "message": raw.decode(errors="replace").rstrip()}
    return msgspec.json.encode(fields | {"process": process, "pid": pid}).decode()
