"""All C files of this folder in one shared library, compiled by the system compiler when first wanted.

It lies in a cache folder, named by everything that it was made from: the sources, the compiler, the flags
and the processor. So a home directory may be shared by machines, several processes may build at once
(each into a file of its own, which is then renamed), and a change of anything makes another file.
Those that were not used for longest are deleted when another is built.
`-march=native` (`-mcpu=native` on ARM) is how the instruction set is chosen: the sources hold a path for each
in `#if`. GCC and clang compile them; `-shared` is also what clang on macOS takes, and a file is loaded there
whatever its name ends with.

Knows no kernel: whoever calls one declares it (`Library.function`).
"""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from protocol.errors import StartupError

Choice = Literal["auto", "native", "torch"]

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_S = 100.0
"""Less than the supervisor gives to a part of loading: a compiler that hangs costs the kernels only."""
VERSION_TIMEOUT_S = 10.0
KEPT = 32
"""Libraries in a cache folder, of half a megabyte each, for all machines that share the home directory."""
ABANDONED_S = 24 * 3600.0
"""So much older than the newest library is a folder whose builder must have been killed."""
_COMPILE = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fwrapv",
    "-Wall",
    "-Wno-psabi",
)
_LINK = ("-shared", "-pthread")


class NoCompiler(Exception):
    """There is none, or it does not work. The message says which, for people."""


class Recorder(Protocol):
    def add(self, kind: int, arguments: tuple[int | None, ...], *used: Any) -> None:
        """A call was made; `used` are the tensors whose memory it read or wrote."""


class Library:
    """The loaded library. One per process is enough: its pool of threads is the process's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dll = ctypes.CDLL(str(path))
        self._set_threads = self.function("tern_set_threads", None, ctypes.c_int)
        self._get_threads = self.function("tern_get_threads", ctypes.c_int)
        self.codes = True
        """Whether matrices of bfloat16 are coded, see coded.h."""
        self.records = True
        """Whether models may record their steps."""
        self.recorder: Recorder | None = None
        """Is told of each call that a Tape can make again (layers/tape.py)."""

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A C function with its types; calling it releases the GIL."""
        found = getattr(self._dll, name)
        found.restype, found.argtypes = result, arguments
        return found

    def set_threads(self, count: int) -> None:
        """Threads that work on a kernel from now on, the calling one included."""
        self._set_threads(count)

    def threads(self) -> int:
        return int(self._get_threads())


def load(choice: Choice, environ: Mapping[str, str]) -> tuple[Library | None, str]:
    """The library, or none; and in one line what is used and why.

    Raises StartupError for `native` without a working compiler.
    """
    if choice == "torch":
        return None, "kernels of torch, as --cpu-kernels torch asks"
    try:
        library = _open(cache_folder(environ), environ)
    except NoCompiler as error:
        if choice == "native":
            raise StartupError(
                f"--cpu-kernels native: {error}", hint=f"{how_to_install()}, or use --cpu-kernels auto"
            ) from error
        return None, f"kernels of torch, which are slower: {error}"
    return library, f"own kernels, {library.path}"


def _open(folder: Path, environ: Mapping[str, str]) -> Library:
    """A file that does not load (a machine stopped while it was written, its folder is mounted noexec) is
    deleted and made again, once, in a temporary folder. Raises NoCompiler."""
    for attempt in (folder, None):
        path, temporary = build(attempt, environ)
        try:
            return Library(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            failed = f"{path} cannot be loaded: {error}"
        finally:
            if temporary:  # what is loaded stays
                shutil.rmtree(path.parent, ignore_errors=True)
    raise NoCompiler(failed)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/tern/kernels, or ~/.cache/tern/kernels"""
    base = environ.get("XDG_CACHE_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".cache"
    )
    return Path(base) / "tern" / "kernels"


def build(folder: Path | None, environ: Mapping[str, str], march: str | None = None) -> tuple[Path, bool]:
    """The library's file, compiled if it is not in `folder` yet; and whether it is a temporary one.

    A folder that cannot be written (or trusted), or None, is replaced by a new temporary one. `march` other
    than the processor's own is for tests. Raises NoCompiler.
    """
    compiler = find_compiler(environ)
    flags = [*_COMPILE, f"-march={march}" if march else _native_flag()]
    sources = sorted(SOURCES.glob("*.c"))
    name = f"tern-{_key(compiler, flags, sources)}.so"
    if folder is not None and _is_ours(folder / name):
        with suppress(OSError):
            os.utime(folder / name)  # used, see prune
        return folder / name, False
    work = _work_folder(folder)
    built = work / name
    try:
        _compile(compiler, flags, sources, built)
        built.chmod(0o700)  # whatever the umask is, or _is_ours would refuse it at the next start
        if folder is not None and work.parent == folder and _is_private(folder):
            os.replace(built, folder / name)
            prune(folder)
            return folder / name, False
        return built, True
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        if not built.exists():
            shutil.rmtree(work, ignore_errors=True)


def prune(folder: Path) -> None:
    """Deletes all but the KEPT libraries that were used last, and what killed builders left.

    Whoever has loaded a library keeps it, as its memory does; who was about to load it builds it again.
    """
    with suppress(OSError):  # another process deletes, too
        libraries = sorted(folder.glob("tern-*.so"), key=lambda path: path.stat().st_mtime)
        for path in libraries[:-KEPT]:
            path.unlink(missing_ok=True)
        for path in folder.glob("build-*") if libraries else ():
            if path.stat().st_mtime < libraries[-1].stat().st_mtime - ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _work_folder(folder: Path | None) -> Path:
    """A new one, of this user alone, in `folder` if that can be."""
    if folder is not None:
        with suppress(OSError):
            _make_private(folder)
            return Path(tempfile.mkdtemp(prefix="build-", dir=folder))
    return Path(tempfile.mkdtemp(prefix="tern-kernels-"))


def _make_private(folder: Path) -> None:
    """With whatever is missing above it, which mkdir(parents=True) would leave to the umask."""
    if not folder.exists():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def find_compiler(environ: Mapping[str, str]) -> str:
    """$CC, or the first of COMPILERS in the path. Raises NoCompiler."""
    asked = environ.get("CC")
    for name in (asked,) if asked else COMPILERS:
        if path := shutil.which(name, path=environ.get("PATH")):
            return path
    raise NoCompiler(
        f"CC is {asked!r}, which is not found" if asked else f"none of {', '.join(COMPILERS)} is found"
    )


def how_to_install() -> str:
    """A compiler, on this system."""
    return "xcode-select --install" if platform.system() == "Darwin" else "apt install gcc libc6-dev"


def _native_flag() -> str:
    return "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"


def _key(compiler: str, flags: Sequence[str], sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    version = _finish(_start([compiler, "--version"]), VERSION_TIMEOUT_S)
    for text in (compiler, version, *flags, *_LINK, platform.machine(), _cpu_flags()):
        digest.update(text.encode() + b"\0")
    for path in sorted([*sources, *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _cpu_flags() -> str:
    """What -march=native depends on. Empty where there is no /proc: then the machine's name has to do."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        wanted = ("model name", "flags", "Features", "CPU part")
        return "".join(dict.fromkeys(line for line in file if line.startswith(wanted)))
    return platform.node()


def _compile(compiler: str, flags: Sequence[str], sources: Sequence[Path], into: Path) -> None:
    """Each file by a process of its own, side by side; then linked."""
    until = time.monotonic() + COMPILE_TIMEOUT_S
    objects = [into.with_name(source.stem + ".o") for source in sources]
    running = [
        _start([compiler, *flags, "-c", str(source), "-o", str(made)])
        for source, made in zip(sources, objects, strict=True)
    ]
    try:
        for process in running:
            _finish(process, until - time.monotonic())
    finally:
        for process in running:
            _end(process)
    link = _start([compiler, *_LINK, *map(str, objects), "-o", str(into), "-lm"])
    _finish(link, until - time.monotonic())


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Raises NoCompiler."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be ended with the processes that it starts
        )
    except OSError as error:
        raise NoCompiler(f"{command[0]} does not run: {error}") from error


def _finish(process: subprocess.Popen[str], timeout_s: float) -> str:
    """Its output. Raises NoCompiler when it fails or takes longer."""
    compiler = str(process.args[0])  # type: ignore[index]
    try:
        said, _ = process.communicate(timeout=max(timeout_s, 0.0))
    except subprocess.TimeoutExpired:
        _end(process)
        raise NoCompiler(f"{compiler} takes longer than {COMPILE_TIMEOUT_S:g} s") from None
    if process.returncode:
        raise NoCompiler(f"{compiler} failed ({process.returncode}): {_first_lines(said)}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    """With what it has started, which would keep its pipe open."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _first_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(lines[:3])[:500] or "it said nothing"


def _is_ours(path: Path) -> bool:
    """It exists, and only this user could have written it: what is loaded is run."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return stat.st_uid in (os.geteuid(), 0) and not stat.st_mode & 0o022 and _is_private(path.parent)


def _is_private(folder: Path) -> bool:
    """And nobody else can put another folder in its place. (Groups of the folders above are trusted: where
    each user has a group of their own, homes are often writable for it.)"""
    own = folder.stat()
    return (
        own.st_uid in (os.geteuid(), 0)
        and not own.st_mode & 0o022
        and all(above.stat().st_mode & 0o1002 != 0o002 for above in folder.resolve().parents)
    )
