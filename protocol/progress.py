"""Progress board: one row of shared memory per process, in which its main loop says what it is at.

    row   beats     rises with every word; a row that does not change while it is busy makes no progress
          budget    nanoseconds that the present activity may take at most; 0: waiting for work

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


class Reading(Struct, frozen=True):
    """What a row holds."""

    beats: int
    budget_s: float
    """0.0: waiting for work"""


class Board:
    """The supervisor's end: makes the memory and reads it."""

    def __init__(self, num_rows: int) -> None:
        self.fd = os.memfd_create("tern-progress")
        os.ftruncate(self.fd, num_rows * _ROW_BYTES)
        self._words = memoryview(mmap.mmap(self.fd, num_rows * _ROW_BYTES)).cast("Q")

    def read(self, row: int) -> Reading:
        first = row * _WORDS_PER_ROW
        return Reading(self._words[first], self._words[first + 1] / 1e9)

    def clear(self, row: int) -> None:
        """Before a row gets another writer."""
        self._words[row * _WORDS_PER_ROW + 1] = 0

    def close(self) -> None:
        os.close(self.fd)


class Progress:
    """A main loop's own row. Made with fd -1 (no supervisor), it writes into memory of its own."""

    def __init__(self, fd: int = -1, row: int = 0) -> None:
        if fd < 0:
            memory = mmap.mmap(-1, (row + 1) * _ROW_BYTES)
        else:
            memory = mmap.mmap(fd, (row + 1) * _ROW_BYTES)
            os.close(fd)
        first = row * _WORDS_PER_ROW
        self._words = memoryview(memory).cast("Q")[first : first + 2]
        self._beats = self._words[0]

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
