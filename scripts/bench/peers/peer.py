"""A peer: a process of another engine's Python, with its model loaded, that answers with seconds.

While it is not asked it is stopped, so that its waiting threads take nothing from whoever is measured.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Prompts = Sequence[Sequence[int]]
PROJECT = Path(__file__).resolve().parents[3]


class Peer:
    """One call is one measurement."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        """Waits until the model is loaded. Raises RuntimeError when it cannot be."""
        self._process, self._log = process, log
        if (line := self._read()) != "ready":
            raise RuntimeError(f"expected 'ready' of a peer, not {line!r}")
        self._stop()

    def seconds(self, method: str, prompts: Prompts, num_tokens: int) -> float:
        """Wall seconds until all prompts are answered with `num_tokens` tokens. Raises RuntimeError."""
        self._signal(signal.SIGCONT)
        questions = self._process.stdin
        assert questions is not None
        questions.write(json.dumps([method, prompts, num_tokens]) + "\n")
        questions.flush()
        seconds = float(self._read())
        self._stop()
        return seconds

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group: some engines have processes of their own."""
        os.killpg(self._process.pid, number)

    def _read(self) -> str:
        answers: IO[str] | None = self._process.stdout
        assert answers is not None
        if line := answers.readline():
            return line.strip()
        status = self._process.wait()
        raise RuntimeError(f"{self._process.args!r} ended with {status}:\n{self._log.read_text()[-2000:]}")


@contextmanager
def peer(python: str, driver: str, arguments: Sequence[str], log: Path) -> Iterator[Peer]:
    """A loaded driver of drivers/, run by `python`; what its engine prints goes to `log`."""
    command = [python, "-m", f"scripts.bench.peers.drivers.{driver}", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            start_new_session=True,
        )
    try:
        yield Peer(process, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
