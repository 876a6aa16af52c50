"""Programs under test as real processes: the `launch` fixture, and what it returns."""

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from protocol.control import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0
"""For anything that a test waits for: far more than it takes, even on a machine that is busy."""


class Program:
    """A process and all that it has started, in a session of their own; its output is kept."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.output = ""
        self._process = subprocess.Popen(
            argv, cwd=ROOT, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # however the tests end
        )  # fmt: skip
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Until the output, from offset `after` on, matches."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + DEADLINE_S
        while (match := expression.search(self.output, after)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} within {DEADLINE_S} s in:\n{self.output}"
            assert self._read(left), f"ended without {pattern!r}:\n{self.output}"
        return match

    def wait(self) -> int:
        """Until it ends: exit code. All of its output has then been read."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"did not end within {DEADLINE_S} s:\n{self.output}"
        return self._process.wait(DEADLINE_S)

    def survivors(self) -> list[int]:
        """Processes of its session that still run."""
        return [pid for pid, session, state in _processes() if session == self.pid and state not in "ZX"]

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll for something that has no descriptor to wait on."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}\n{self.output}"
            assert self._read(0.01), f"ended before: {what}\n{self.output}"

    def wait_until_gone(self) -> None:
        """Until nothing of its session runs, without a push."""
        deadline = time.monotonic() + DEADLINE_S
        while self.survivors():
            assert time.monotonic() < deadline, f"still running: {self.survivors()}"
            self._read(0.01)

    def close(self) -> None:
        """Kill whatever is left."""
        for pid in self.survivors():
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()
        self._selector.close()

    def _read(self, timeout_s: float) -> bool:
        """False at the end of the output, which every process of the session has left by then."""
        if self._ended or not self._selector.select(max(timeout_s, 0)):
            return not self._ended
        data = os.read(self._pipe.fileno(), 1 << 16)
        self.output += data.decode(errors="replace")
        self._ended = not data
        return not self._ended


Launch = Callable[..., Program]

# The same examples in each run, however slowly they come: a machine may be busy, or stop for a while.
settings.register_profile(
    "tern", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tern")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that is marked `long` come first."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def launcher() -> Iterator[Callable[[Path], Launch]]:
    """launcher(folder) is a `launch` without any TERN_ variable, with `folder` for temporary files."""
    programs: list[Program] = []

    def make(folder: Path) -> Launch:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TERN_")}
        environment = {**kept, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}

        def start(module: str, *arguments: str, **extra: str) -> Program:
            programs.append(Program([sys.executable, "-m", module, *arguments], environment | extra))
            return programs[-1]

        return start

    yield make
    for program in programs:
        program.close()


@pytest.fixture
def launch(launcher: Callable[[Path], Launch]) -> Iterator[Launch]:
    """launch(module, *arguments, **environment) runs `python -m module arguments`."""
    with tempfile.TemporaryDirectory(
        prefix="test-", ignore_cleanup_errors=True
    ) as folder:  # short: a socket's path has 107 bytes
        yield launcher(Path(folder))


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, session, state) of everything on this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            yield int(entry.name), int(fields[3]), fields[0]
