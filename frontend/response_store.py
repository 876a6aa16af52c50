"""ResponseStore: documents that clients may ask for again, in files that all frontends of a server share.

    folder/0/5f3a…     of the frontend with index 0: it alone writes there, and forgets its oldest
    folder/1/9c01…     of the next; whoever looks for a document looks into every folder, and whoever
                       writes one removes what others had written of it

A predecessor that still finishes its streams stores in our folder, too: its documents come into our account
as we store some. So a document outlives its frontend, and is gone with the server, whose private folder it
lies in. A name is a hash of tenant and id: no tenant finds another's. Files are read in threads, and changed
in one thread, in the order in which that was decided, even if nobody waits for it any more. Knows no shapes.
"""

import asyncio
import functools
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Outcome = TypeVar("Outcome")

log = logging.getLogger("tern.frontend")

_UNFINISHED = ".new"
"""End of the names of files that are being written, behind the pid of whoever does."""
MOST_DOCUMENTS = 4096
"""Of all frontends together."""
RECOUNT_EVERY = 16
"""Documents of our own, between two looks for those of a predecessor; each takes up to a millisecond."""


class ResponseStore:
    """The part of one frontend. Without a folder, or with room for no byte, nothing is kept."""

    def __init__(self, folder: str, most_bytes: int, *, index: int = 0, num_frontends: int = 1) -> None:
        """`most_bytes`: of all frontends together."""
        self.enabled = bool(folder) and most_bytes > 0
        self.folder = folder
        self.most_bytes = most_bytes
        self._folders = [os.path.join(folder, str(i)) for i in range(max(num_frontends, index + 1))]
        self._own = self._folders[index]
        self._most_bytes = most_bytes // num_frontends
        self._most = max(MOST_DOCUMENTS // num_frontends, 1)
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Of our files, the oldest first."""
        self._num_bytes = 0
        self._num_puts = 0
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="responses")
        if self.enabled:
            os.makedirs(self._own, mode=0o700, exist_ok=True)
            self._take_over(self._strangers(frozenset()))

    async def put(self, tenant: str, document_id: str, document: bytes) -> bool:
        """Keep it, as long as there is room for it. False: it is not kept."""
        if not self.enabled or len(document) > self._most_bytes:
            return False
        name = document_name(tenant, document_id)
        self._forget(name)
        self._sizes[name] = len(document)
        self._num_bytes += len(document)
        crowded = []
        while self._num_bytes > self._most_bytes or len(self._sizes) > self._most:
            oldest = next(iter(self._sizes))
            self._forget(oldest)
            crowded.append(oldest)
        kept = await self._change(functools.partial(self._write, name, document, crowded))
        if not kept:
            self._forget(name)
        if self._num_puts % RECOUNT_EVERY == 0:
            known = frozenset(self._sizes)  # of which some may be yet to be written
            self._take_over(await self._change(functools.partial(self._strangers, known)))
        self._num_puts += 1
        return kept

    async def get(self, tenant: str, document_id: str) -> bytes | None:
        """None: it was never kept, or is forgotten."""
        return (
            await asyncio.to_thread(self._read, document_name(tenant, document_id)) if self.enabled else None
        )

    async def delete(self, tenant: str, document_id: str) -> bool:
        """False: there was none."""
        if not self.enabled:
            return False
        name = document_name(tenant, document_id)
        self._forget(name)
        return await self._change(functools.partial(self._unlink, name, self._folders))

    def _take_over(self, found: Iterable[tuple[str, int]]) -> None:
        """Files that we have not written, the oldest first, and their sizes."""
        for name, size in found:
            if name not in self._sizes:
                self._sizes[name] = size
                self._num_bytes += size

    def _strangers(self, known: Collection[str]) -> list[tuple[str, int]]:
        """What is in our folder besides, the oldest first; what a dead frontend had begun goes."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self._own) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a predecessor that still finishes its streams changes it
                    if entry.name.endswith(_UNFINISHED):
                        if not _is_alive(int(entry.name.split(".")[1])):
                            os.unlink(entry.path)
                    elif entry.name not in known:
                        status = entry.stat()
                        found.append((status.st_mtime_ns, entry.name, status.st_size))
        return [(name, size) for _, name, size in sorted(found)]

    def _forget(self, name: str) -> None:
        """In the account of our files, not on the disk."""
        self._num_bytes -= self._sizes.pop(name, 0)

    async def _change(self, work: Callable[[], Outcome]) -> Outcome:
        """In its turn."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._changes, work))

    def _write(self, name: str, document: bytes, crowded: Sequence[str]) -> bool:
        """Make room, and write: whoever reads sees all of it or nothing. False: it cannot be written."""
        for one in crowded:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._own, one))
        path = os.path.join(self._own, name)
        unfinished = f"{path}.{os.getpid()}{_UNFINISHED}"
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(document)
            os.replace(unfinished, path)
            self._unlink(name, [folder for folder in self._folders if folder != self._own])
        except OSError as error:
            log.error("a response cannot be stored: %s", error.strerror)
            return False
        return True

    def _read(self, name: str) -> bytes | None:
        for folder in self._folders:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    return file.read()
            except FileNotFoundError:
                continue
        return None

    def _unlink(self, name: str, folders: Sequence[str]) -> bool:
        found = False
        for folder in folders:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
                found = True
        return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def document_name(tenant: str, document_id: str) -> str:
    """Of its file."""
    return hashlib.sha256(f"{tenant}\n{document_id}".encode()).hexdigest()[:32]
