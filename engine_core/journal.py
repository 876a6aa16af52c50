"""Journal: the flight recorder. What the engine core was asked, planned and was answered, in that order.

A file of records, each a msgpack frame after its length (uint32, little-endian). The first is `Opened`;
`Submitted`, `Reset`, `StepPlan`, `StepMasks`, `StepResult` and `StepFailed` follow. Plans are complete from
their epoch's Reset on, so a recording is replayed by executing them (`tern replay FILE`). It therefore ends
only at an epoch's border: full in the middle of one, it says nothing more until the next, which begins a
new file, as other workers and another engine core do; the one before is kept as FILE.old. Both together
stay within the limit.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

import msgspec
from msgspec import Struct

from protocol.messages import EngineFacts, Submit
from protocol.steps import Reset, StepFailed, StepMasks, StepPlan, StepResult

_LENGTH_BYTES = 4


class Opened(Struct, frozen=True, array_like=True, tag="opened"):
    """Whose steps these are."""

    fingerprint: str
    """Of the wire's schema"""
    model_fingerprint: str
    facts: EngineFacts


class Submitted(Struct, frozen=True, array_like=True, tag="submitted"):
    """A request was accepted."""

    client: str
    submit: Submit


Record = Opened | Submitted | Reset | StepPlan | StepMasks | StepResult | StepFailed


class Journal:
    """Appends records to a file with mode 0600; it holds prompts. A full disk ends it, and nothing else."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._limit = max_bytes // 2
        self._encode = msgspec.msgpack.Encoder().encode
        if os.path.isfile(path) and os.path.getsize(path):
            os.replace(path, f"{path}.old")  # of the engine core before us: what it did may be of interest
        self._file = self._open()
        self._size = 0
        self._full = False
        self._broken = False
        """It cannot be written any more."""
        self._opened: Opened | None = None

    def begin_epoch(self, opened: Opened, reset: Reset) -> None:
        """From here on plans can be replayed without what was before."""
        self._opened = opened
        if self._broken:
            return
        if self._size:
            try:
                self._file.close()
                os.replace(self._path, f"{self._path}.old")
                self._file = self._open()
            except OSError as error:
                self._give_up(error)
                return
        self._size, self._full = 0, False
        self.write(opened)
        self.write(reset)

    def go_on(self, reset: Reset) -> None:
        """Another epoch of the same workers: in the same file, unless that is full."""
        if self._full and self._opened is not None:
            self.begin_epoch(self._opened, reset)
        else:
            self.write(reset)

    def write(self, record: Record) -> None:
        """Append, if there is room."""
        if self._full:
            return
        frame = self._encode(record)
        self._size += _LENGTH_BYTES + len(frame)
        if self._size > self._limit:
            self._full = True
            return
        try:
            self._file.write(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame)
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Hand what was written to the operating system: it survives a kill of this process."""
        if self._broken:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _give_up(self, error: OSError) -> None:
        self._broken = self._full = True
        self.close()
        print(f"engine core: warning: the journal ends here: {error.strerror}", file=sys.stderr, flush=True)

    def _open(self) -> BinaryIO:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "wb")


class NoJournal:
    """Nobody asked for one."""

    def begin_epoch(self, opened: Opened, reset: Reset) -> None: ...

    def go_on(self, reset: Reset) -> None: ...

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def read(path: str) -> Iterator[Record]:
    """The records of a file. A last one that was cut off by a kill is left out.

    Raises ValueError for what is not a journal.
    """
    decode = msgspec.msgpack.Decoder(Record).decode
    with open(path, "rb") as file:
        while len(head := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
            length = int.from_bytes(head, "little")
            frame = file.read(length)
            if len(frame) < length:
                return
            try:
                yield decode(frame)
            except msgspec.MsgspecError as error:
                raise ValueError(f"{path} is not a journal of this version: {error}") from None
