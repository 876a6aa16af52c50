"""Jobs: work that outlives the connection it came by, in files that all frontends of a server share.

    folder/5f3a…          job: {what is to be done}
                          id: 9.5.12.0          what has come of it so far: events, as outbox.py writes them
                          event: …
    folder/5f3a….cancel   it is to be cancelled

Whoever works on a job holds the lock of its file, which goes with the process, however that ends: then the
next one who is asked for the job takes it over, and goes on behind the last event. A file that is gone is a
job that is done, or that nobody wants any more. Knows no shapes. Calls take microseconds, and are made on the
event loop.
"""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress

from protocol.errors import Overloaded

from .outbox import Position

MOST_JOBS = 64
"""Of all frontends together."""
BLOCK_END = b"\n\n"
_HEAD = b"job: "
_CANCEL, _NEW = ".cancel", ".new"
_READ_BYTES = 1 << 16


class Jobs:
    """The folder."""

    def __init__(self, folder: str, most_bytes: int) -> None:
        """`most_bytes`: of the events of one job."""
        self._folder = folder
        self._most_bytes = most_bytes

    def create(self, name: str, what: bytes) -> "Job":
        """A new one, to work on. `what` has no line breaks. Raises Overloaded."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        if len([one for one in os.listdir(self._folder) if "." not in one]) >= MOST_JOBS:
            raise Overloaded(
                f"there are {MOST_JOBS} background responses already; wait for one, or cancel it"
            )
        path = self._path(name)
        descriptor = os.open(path + _NEW, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anybody can see it
        _write(descriptor, _HEAD + what + BLOCK_END)
        os.rename(path + _NEW, path)
        return Job(path, descriptor, self._most_bytes)

    def adopt(self, name: str) -> "Job | None":
        """One that nobody works on any more, to go on with it. None: there is none, or somebody does."""
        try:
            descriptor = os.open(self._path(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_gone(descriptor):
            os.close(descriptor)
            return None
        return Job(self._path(name), descriptor, self._most_bytes)

    def events(self, name: str) -> "JobEvents | None":
        """What comes of it, to read along. None: it is not there."""
        try:
            return JobEvents(os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None

    def cancel(self, name: str) -> None:
        """Tell whoever works on it."""
        if os.path.exists(self._path(name)):
            os.close(os.open(self._path(name) + _CANCEL, os.O_CREAT | os.O_CLOEXEC, 0o600))

    def delete(self, name: str) -> None:
        """Nobody wants it any more; whoever works on it finds out."""
        _remove(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


class Job:
    """One that this process works on."""

    def __init__(self, path: str, descriptor: int, most_bytes: int) -> None:
        """`descriptor` has the lock, and is ours from here on."""
        self._path = path
        self._descriptor = descriptor
        whole = _read(descriptor, os.fstat(descriptor).st_size, 0)
        self._size = whole.rfind(BLOCK_END) + len(
            BLOCK_END
        )  # what was being written when its writer died is not
        os.ftruncate(descriptor, self._size)
        os.lseek(descriptor, 0, os.SEEK_END)
        head, *events = whole[: self._size].split(BLOCK_END)
        self.what = head.removeprefix(_HEAD)
        self.position = _position(events, Position())
        """Behind its last event with an id."""
        self._most = len(head) + most_bytes
        self._is_full = self._size >= self._most

    @property
    def is_cancelled(self) -> bool:
        return os.path.exists(self._path + _CANCEL)

    @property
    def is_deleted(self) -> bool:
        return _is_gone(self._descriptor)

    def append(self, events: bytes, instead: bytes) -> None:
        """`instead` is written where there is no room for them, nor then for any that follow."""
        if self._is_full:
            return
        self._is_full = self._size + len(events) > self._most
        written = instead if self._is_full else events
        self.position = _position(written.split(BLOCK_END), self.position)
        self._size += len(written)
        _write(self._descriptor, written)

    def events(self) -> bytes:
        """All of them."""
        return _read(self._descriptor, self._size, 0).partition(BLOCK_END)[2]

    def finish(self) -> None:
        """It is done. To be released all the same."""
        _remove(self._path)

    def release(self) -> None:
        """Leave it to others, if it is not done."""
        os.close(self._descriptor)


class JobEvents:
    """Those of one job, by whichever process it is worked on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0
        self._rest = b""
        head, *self._waiting = self._read()
        self.what = head.removeprefix(_HEAD)

    def __enter__(self) -> "JobEvents":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def is_over(self) -> bool:
        """The job is done: what `take` gives after this was true is the end."""
        return _is_gone(self._descriptor)

    def take(self) -> list[bytes]:
        """Those that are new, each without the empty line behind it."""
        waiting, self._waiting = self._waiting, []
        return waiting or self._read()

    def _read(self) -> list[bytes]:
        while True:
            data = _read(self._descriptor, _READ_BYTES, self._at)
            self._at += len(data)
            *blocks, self._rest = (self._rest + data).split(BLOCK_END)
            if blocks or not data:
                return blocks


def _position(events: Sequence[bytes], before: Position) -> Position:
    """Behind them."""
    last = next((block for block in reversed(events) if block.startswith(b"id: ")), None)
    if last is None:
        return before
    return Position(*map(int, last.partition(b"\n")[0].removeprefix(b"id: ").split(b".")))


def _is_gone(descriptor: int) -> bool:
    return os.fstat(descriptor).st_nlink == 0


def _remove(path: str) -> None:
    for one in (path, path + _CANCEL):
        with suppress(FileNotFoundError):
            os.unlink(one)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read(descriptor: int, most: int, at: int) -> bytes:
    parts = []
    while most > 0 and (part := os.pread(descriptor, most, at)):
        parts.append(part)
        at, most = at + len(part), most - len(part)
    return b"".join(parts)
