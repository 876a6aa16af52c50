"""Work that needs torch and the device, each in a process of its own: a kernel that hangs, or that breaks the
device for its process, costs no other job, and all memory is free again after it.

    parent ── python -m scripts.gpu.job_process '{"what": "kernels", …}' ── a line of JSON per finding
"""

import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from protocol.control import die_with_parent

from .floors import Ceilings
from .results import Measurement

ROOT = Path(__file__).parents[2]
TAIL = 4000
"""Characters of what a process wrote that are shown when it fails."""
KERNELS = (
    "decode attention", "16 bits", "8 and 4 bits", "8 bits on both sides", "prompts", "around", "sampling",
    "page tables",
)  # fmt: skip
"""Groups of kernels that are timed, what decides a step first."""


class Job(Struct, frozen=True, kw_only=True):
    what: Literal["device", "ceilings", "kernels", "batching", "tune"]
    rehearsal: bool
    """On the CPU, at tiny sizes, with kernels interpreted."""
    limit_s: float
    ceilings: Ceilings | None = None
    shape: str = ""
    """A name of SHAPES."""
    folder: str = ""
    """For files: checkpoints, tuned choices."""
    groups: tuple[str, ...] = KERNELS
    """Of those, which to time."""


class Device(Struct, frozen=True):
    name: str
    versions: dict[str, str]


class Found(Struct, frozen=True):
    """One line of a job; one of its fields is set."""

    measurement: Measurement | None = None
    ceilings: Ceilings | None = None
    device: Device | None = None
    done: str = ""
    """A group of kernels, all of which have been timed."""


def run(
    job: Job, module: str = "scripts.gpu.job_process", clock: Callable[[], float] = time.monotonic
) -> Iterator[Found]:
    """What it finds, as it comes. Raises TimeoutError after its limit, and RuntimeError with the last line
    that it wrote when it fails. The process is gone when this ends."""
    end = clock() + job.limit_s
    command = [sys.executable, "-m", module, msgspec.json.encode(job).decode()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **_environment(job)},
            stdout=subprocess.PIPE,
            stderr=log,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        try:
            for line in _lines(process, end, clock):
                yield msgspec.json.decode(line, type=Found)
            status = process.wait(max(end - clock(), 1))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise TimeoutError(f"not done within {job.limit_s:.0f} s") from None
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        if status:
            log.seek(0)
            text = log.read().decode(errors="replace").strip() or "no word"
            print(text[-TAIL:], file=sys.stderr, flush=True)
            error = RuntimeError(f"{job.what} ended with {status}: {text.splitlines()[-1]}")
            error.add_note(f"the process wrote:\n{text[-TAIL:]}")
            raise error


def _environment(job: Job) -> Mapping[str, str]:
    return {"TRITON_INTERPRET": "1"} if job.rehearsal else {}


def _lines(process: "subprocess.Popen[bytes]", end: float, clock: Callable[[], float]) -> Iterator[bytes]:
    pipe = process.stdout
    assert pipe is not None
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(max(end - clock(), 0)):
                raise TimeoutError
            new = os.read(pipe.fileno(), 1 << 16)
            if not new:
                return
            *whole, data = (data + new).split(b"\n")
            yield from whole
