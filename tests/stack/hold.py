"""Keeps a server's worker from going on, so that what is done to it in the middle of its work never comes too
late, however busy the machine is. See worker/hold.py, which reads the file.
"""

import itertools
from pathlib import Path
from typing import Literal

Unit = Literal["tokens", "steps"]


class Hold:
    """Of a server that was started with `environ`."""

    def __init__(self, file: Path) -> None:
        self.environ = f"hold:file={file}"
        """What stands for it in TERN_FAULTS."""
        self._file = file
        self._serials = itertools.count()

    def after(self, number: int, unit: Unit = "tokens") -> None:
        """From now on, no further than so many more, and those that are under way. A worker that is started
        meanwhile counts anew."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{next(self._serials)} {unit} {number}")
        new.rename(self._file)

    def release(self) -> None:
        """Go on, without end."""
        self._file.unlink(missing_ok=True)
