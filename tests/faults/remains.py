"""What a server must not leave behind: processes, its run folder, shared memory, its listening sockets.

Other servers and their clients come and go meanwhile, so all is told by whom it belongs to.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.stack.listening import all_listening, listening_of

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

SHARED_MEMORY = Path("/dev/shm")


class Remains:
    """Made while the server runs."""

    def __init__(self, stack: "Stack") -> None:
        self._stack = stack
        self._shared_memory = set(os.listdir(SHARED_MEMORY))
        self._sockets = set(listening_of(stack.program.pid))
        assert self._sockets

    def check(self, *, run_dir: bool = True) -> None:
        """After its end. `run_dir`: of a supervisor that could still clean up."""
        assert self._stack.program.survivors() == []
        assert not (run_dir and self._stack.run_dir.exists())
        new = {SHARED_MEMORY / name for name in set(os.listdir(SHARED_MEMORY)) - self._shared_memory}
        used = _mapped() if new else set()
        assert [path for path in new if path not in used and path.exists()] == []
        assert not self._sockets & all_listening().keys()


def _mapped() -> set[Path]:
    """Files in the memory of any process."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended
            found |= {
                Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if "/" in line
            }
    return found
