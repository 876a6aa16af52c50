"""Starts a real `tern serve` for a benchmark and reads what its processes cost from /proc."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from protocol.control import die_with_parent

READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Stack:
    """A running server."""

    host: str
    port: int
    run_dir: str
    ready_s: float
    """From the command to the first 200 of /health/ready."""
    log: Path
    """What the server has written."""

    @property
    def pids(self) -> dict[str, list[int]]:
        """By kind of process."""
        pids: dict[str, list[int]] = json.loads(Path(self.run_dir, "pids.json").read_text())
        return pids

    def cpu_s(self, kind: str) -> float:
        """CPU seconds that all processes of a kind have used, in nanosecond resolution."""
        return sum(_cpu_s(pid) for pid in self.pids[kind])

    def rss_mb(self, kind: str) -> float:
        """Resident memory of the first process of a kind."""
        for line in Path(f"/proc/{self.pids[kind][0]}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ProcessLookupError(kind)


def _cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def serving(
    arguments: Sequence[str],
    environ: Mapping[str, str] | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[Stack]:
    """A server on a free port, stopped at the end, and killed if we are. `environ`: variables besides ours.

    To be entered by the main thread: the server's life is tied to it. Raises RuntimeError with the end of its
    log when it is not ready in time.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="tern-bench-") as folder:
        run_dir = os.path.join(folder, "run")
        command = [sys.executable, "-m", "scripts.cli", "serve", "--port", str(port), "--run-dir", run_dir]
        command += ["--crash-dir", os.path.join(folder, "crashes")]
        log = Path(folder, "log")
        began = time.monotonic()
        with log.open("wb") as output:
            server = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=output,
                env=os.environ | (environ or {}),
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        try:
            while not _is_ready(port):
                if server.poll() is not None or time.monotonic() - began > ready_timeout_s:
                    raise RuntimeError(f"the server did not get ready:\n{log.read_text()[-2000:]}")
                time.sleep(0.01)
            yield Stack("127.0.0.1", port, run_dir, time.monotonic() - began, log)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
