"""Progress board: one row of shared memory per process, in which its main loop says what it is at.

    row   beats     rises with every word; a row that does not change while it is busy makes no progress
          budget    nanoseconds that the present activity may take at most; 0: waiting for work
    last row        how often processes of each kind were started again, which the supervisor writes

Only the main loop itself writes its row, so a process whose I/O threads still answer but whose loop hangs
is seen, also when it hangs in C with the interpreter's lock held. A loop writes before it begins
something and again before it waits, and an idle process writes nothing. Whoever reads decides what a
silence means: nothing here knows a clock. One word costs 0.2 µs.
"""

import mmap
import os

from msgspec import Struct

_ROW_BYTES = 64
"""A cache line, so that neighbours do not slow each other."""
_WORD_BYTES = 8
_WORDS_PER_ROW = _ROW_BYTES // _WORD_BYTES

KINDS = ("engine_core", "worker", "frontend")
"""Of processes that are started again, in the order of the words in the last row."""


class Reading(Struct, frozen=True):
    """What a row holds."""

    beats: int
    budget_s: float
    """0.0: waiting for work"""


class Board:
    """The supervisor's end: makes the memory and reads it."""

    def __init__(self, num_rows: int) -> None:
        self.fd = os.memfd_create("tern-progress")
        num_bytes = (num_rows + 1) * _ROW_BYTES
        os.ftruncate(self.fd, num_bytes)
        self._words = memoryview(mmap.mmap(self.fd, num_bytes)).cast("Q")
        self._last_row = self._words[num_rows * _WORDS_PER_ROW :]

    def read(self, row: int) -> Reading:
        first = row * _WORDS_PER_ROW
        return Reading(self._words[first], self._words[first + 1] / 1e9)

    def count_restart(self, kind: str) -> None:
        """A process of this kind, one of KINDS, is started again."""
        self._last_row[KINDS.index(kind)] += 1

    def clear(self, row: int) -> None:
        """Before a row gets another writer."""
        self._words[row * _WORDS_PER_ROW + 1] = 0

    def close(self) -> None:
        os.close(self.fd)


class Progress:
    """A main loop's own row. Made with fd -1 (no supervisor), it writes into memory of its own."""

    def __init__(self, fd: int = -1, row: int = 0) -> None:
        if fd < 0:
            memory = mmap.mmap(-1, (row + 2) * _ROW_BYTES)
        else:
            memory = mmap.mmap(fd, os.fstat(fd).st_size)
            os.close(fd)
        first = row * _WORDS_PER_ROW
        words = memoryview(memory).cast("Q")
        self._words = words[first : first + 2]
        self._last_row = words[-_WORDS_PER_ROW:]
        self._beats = self._words[0]

    def restarts(self) -> dict[str, int]:
        """Of processes of each kind, since the server's start."""
        return dict(zip(KINDS, self._last_row, strict=False))

    def busy(self, budget_s: float) -> None:
        """What begins now takes at most this long. Said again, the time begins again."""
        self._beats += 1
        self._words[1] = int(budget_s * 1e9) or 1
        self._words[0] = self._beats

    def beat(self) -> None:
        """Still busy, and a part of it is done: the time begins again. A loop that has many small things to
        do at once is slow, not hung."""
        self._beats += 1
        self._words[0] = self._beats

    def idle(self) -> None:
        """From here on the loop only waits for work."""
        self._beats += 1
        self._words[1] = 0
        self._words[0] = self._beats
