"""The server's private folder: where sockets lie, where its engine core and pids can be looked up.

    c{n} w{n}   sockets of the engine core of incarnation n, for clients and for workers
    g{n}/       where the ranks of the worker group of incarnation n meet
    metrics/    where several frontends find each other's metrics
    responses/  past responses that clients may ask for again
    endpoint    the engine core's current address: what `EngineClient.attach` takes
    pids.json   pids by kind of process
    lock        held as long as the supervisor lives

Mode 0700, removed at exit. A supervisor that is killed cannot remove its folder; the next one does,
when the lock shows that nobody lives there.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from protocol.errors import StartupError

MAX_SOCKET_PATH_BYTES = 107
"""sun_path in <sys/un.h>, less its final zero."""
LONGEST_NAME = "/g99999999999/rank63"
PREFIX = "tern-"
OURS = ("c[0-9]*", "w[0-9]*", "g[0-9]*", "metrics", "responses", "endpoint", "pids.json", "*.new")


class RunDir:
    """Made by `open`, removed by `remove`."""

    def __init__(self, path: str, lock: int, *, made: bool) -> None:
        self.path = path
        self.metrics_dir = os.path.join(path, "metrics")
        self.responses_dir = os.path.join(path, "responses")
        self._lock = lock
        self._made = made
        os.mkdir(self.metrics_dir, 0o700)
        os.mkdir(self.responses_dir, 0o700)

    @classmethod
    def open(cls, path: str) -> "RunDir":
        """Make the folder, or take over one that nobody uses. Raises StartupError."""
        if not path:
            remove_abandoned()
            path = tempfile.mkdtemp(prefix=PREFIX)
            made = True
        else:
            path = os.path.abspath(path)
            made = _make(path)
        try:
            _check_length(path)
            lock = _take_lock(path)
        except StartupError:
            if made:
                shutil.rmtree(path)
            raise
        _clear(path)
        return cls(path, lock, made=made)

    def clients_endpoint(self, incarnation: int) -> str:
        return f"ipc://{self.path}/c{incarnation}"

    def workers_endpoint(self, incarnation: int) -> str:
        return f"ipc://{self.path}/w{incarnation}"

    def make_group_dir(self, incarnation: int) -> str:
        path = f"{self.path}/g{incarnation}"
        os.mkdir(path, 0o700)
        return path

    @property
    def endpoint_file(self) -> str:
        """The same as protocol.client.endpoint_file, which cannot be imported here: it needs zmq."""
        return os.path.join(self.path, "endpoint")

    def write_endpoint(self, endpoint: str) -> None:
        self._replace("endpoint", endpoint.encode() + b"\n")

    def write_pids(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._replace("pids.json", msgspec.json.format(msgspec.json.encode(pids)) + b"\n")

    def forget(self, incarnation: int) -> None:
        """Remove what a dead incarnation has left."""
        for name in ("c", "w"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.path}/{name}{incarnation}")
        shutil.rmtree(f"{self.path}/g{incarnation}", ignore_errors=True)

    def remove(self) -> None:
        """Remove everything of ours, and the folder if it was made by us."""
        _clear(self.path)
        os.unlink(os.path.join(self.path, "lock"))
        os.close(self._lock)
        if self._made:
            with suppress(OSError):  # not empty: something in it is not ours
                os.rmdir(self.path)

    def _replace(self, name: str, content: bytes) -> None:
        """Whoever reads sees the old content or the new, never a part."""
        path = os.path.join(self.path, name)
        with open(f"{path}.new", "wb") as file:
            file.write(content)
        os.replace(f"{path}.new", path)


def check(path: str) -> None:
    """Whether `open` would take this folder; "": a new temporary one. Changes nothing; StartupError."""
    if not path:
        _check_length(os.path.join(tempfile.gettempdir(), f"{PREFIX}12345678"))
        return
    path = os.path.abspath(path)
    _check_length(path)
    if os.path.lexists(path):
        _check_private(path)
        if os.path.exists(os.path.join(path, "lock")):
            os.close(_take_lock(path))
    elif not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise StartupError(f"--run-dir {path}: cannot be made", hint="name a folder that can be written")


def _make(path: str) -> bool:
    """True: made; False: it was there, and is private."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        _check_private(path)
        return False
    except OSError as error:
        raise StartupError(f"--run-dir {path}: cannot be made: {error.strerror}") from None
    return True


def _check_private(path: str) -> None:
    private = False
    if os.path.isdir(path):
        status = os.stat(path)
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if not private:
        raise StartupError(
            f"--run-dir {path}: exists and is not a folder that only you can enter",
            hint="name a folder that does not exist yet, or one of your own with mode 700",
        )


def _check_length(path: str) -> None:
    length = len(os.fsencode(path + LONGEST_NAME))
    if length > MAX_SOCKET_PATH_BYTES:
        raise StartupError(
            f"the run folder {path} is {length - MAX_SOCKET_PATH_BYTES} bytes too long for a socket's path",
            hint="name a shorter one with --run-dir",
        )


def _take_lock(path: str) -> int:
    descriptor = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StartupError(f"--run-dir {path}: another server runs there", hint="name another") from None
    return descriptor


def remove_abandoned() -> None:
    """Temporary folders of our servers that were killed.

    Pids are written under the lock, so a folder with pids and a free lock has had its time.
    """
    for path in glob.glob(os.path.join(tempfile.gettempdir(), f"{PREFIX}*")):
        if os.lstat(path).st_uid != os.geteuid() or not os.path.exists(os.path.join(path, "pids.json")):
            continue
        with suppress(StartupError, OSError):
            lock = _take_lock(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _clear(path: str) -> None:
    for pattern in OURS:
        for entry in glob.glob(os.path.join(glob.escape(path), pattern)):
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(entry)
