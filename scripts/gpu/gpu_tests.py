"""The tests marked `gpu`, as one step of a run. In several processes, as most of their time is compiling."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress

from .bench import Bench
from .jobs import ROOT
from .results import Measurement

TESTS = ["tests/worker/kernels/triton"]
"""Where tests marked `gpu` are."""
REHEARSED = ["tests/worker/kernels/triton/test_activation.py"]
PYTEST_INI = "[pytest]\npythonpath = {root}\nmarkers = gpu: needs an NVIDIA GPU\n"
"""Of its own, as a GPU machine may have other versions, whose warnings are no errors, and lack the plugins
that the whole suite wants."""
PROCESSES = 12
NO_TESTS = 5
"""pytest's exit code"""


def run_tests(bench: Bench, limit_s: float) -> Iterator[Measurement]:
    """How many passed; raises RuntimeError with the names of those that did not."""
    output, status = _pytest(bench.rehearsal, limit_s)
    passed, failed = verdicts(output)
    yield Measurement(part="tests", name="tests passed", value=len(passed), unit="tests")
    if status is None:
        raise TimeoutError(f"not done within {limit_s:.0f} s; failed so far: {', '.join(failed) or 'none'}")
    if status:
        print(output[-20_000:], flush=True)
        error = RuntimeError(f"{len(failed)} failed: {', '.join(failed) or output[-300:]}")
        error.add_note(output[-15_000:])
        raise error


def verdicts(output: str) -> tuple[list[str], list[str]]:
    """Names of those that passed and of those that did not, as `pytest -v` writes them, with xdist too."""
    found: dict[str, list[str]] = {"PASSED": [], "FAILED": [], "ERROR": []}
    for line in output.splitlines():
        if match := re.search(r"(?P<before>\S*::.*?) (PASSED|FAILED|ERROR)\b", line):
            found[match[2]].append(match["before"])
        elif match := re.match(r"\[gw\d+\].*? (PASSED|FAILED|ERROR) (.*)", line):
            found[match[1]].append(match[2].strip())
    return found["PASSED"], found["FAILED"] + found["ERROR"]


def _pytest(rehearsal: bool, limit_s: float) -> tuple[str, int | None]:
    """(what it wrote, exit code or None when it was cut off)"""
    tests = REHEARSED if rehearsal else TESTS
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as ini, tempfile.TemporaryFile() as log:
        ini.write(PYTEST_INI.format(root=ROOT))
        ini.flush()
        command = [sys.executable, "-m", "pytest", "-c", ini.name, "--rootdir", str(ROOT), "-v", "-rfE"]
        command += ["--import-mode=importlib", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # none is needed, most are slow
        if rehearsal:
            environment["TRITON_INTERPRET"] = "1"
        else:
            command += ["-m", "gpu"]
            if importlib.util.find_spec("xdist"):
                command += ["-p", "xdist", "--numprocesses", str(min(PROCESSES, os.cpu_count() or 1))]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):  # xdist's processes, too: one may hang in a kernel
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return log.read().decode(errors="replace"), status
