"""The process of one job, see jobs.py."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import msgspec
import torch

from worker.kernels.triton.norm import norm
from worker.kernels.triton.tuning import Product

from . import ceilings, kernels, tune
from .jobs import Device, Found, Job
from .results import Measurement
from .served import nano_vllm_workload
from .shapes import SHAPES, TINY

BEGAN = time.monotonic()
LEAVING_S = 3.0
"""Before its limit, a job that can be cut off ends by itself."""
TINY_KERNELS = kernels.Sizes(
    n=128, k=128, rows=(1, 2), prompt_rows=8, num_heads=4, num_kv_heads=2, head_dim=32, block_size=16,
    decodes=((2, 32),), prompts=(32,), vocab=512, sampled=(1,), table_tokens=(64, 512),
)  # fmt: skip

TINY_PRODUCTS = [Product("bf16 × bf16", 16, 32, 64), Product("bf16 × int4", 16, 32, 64)]


def main(argument: str) -> int:
    """Writes what is found to where stdout leads; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    job = msgspec.json.decode(argument, type=Job)
    for found in _found(job):
        answers.write(msgspec.json.encode(found) + b"\n")
    return 0


def describe(rehearsal: bool) -> Device:
    """Raises RuntimeError where torch can use no GPU."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    for package in ("triton", "transformers", "numpy"):
        versions[package] = _version(package)
    if rehearsal:
        return Device("rehearsal on a CPU", versions)
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        raise RuntimeError(f"torch {torch.__version__}, built with {built}, can use no GPU")
    check_launch(_launch)
    properties = torch.cuda.get_device_properties(0)
    versions |= {"CUDA": str(torch.version.cuda), "driver": driver()}
    versions["GPU"] = (
        f"sm_{properties.major}{properties.minor}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB"
    )
    return Device(properties.name, versions)


def check_launch(launch: Callable[[], object]) -> None:
    """Raises RuntimeError where Triton can launch no kernel, with what that takes."""
    try:
        launch()
    except Exception as error:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "none found"
        headers = Path(sysconfig.get_paths()["include"], "Python.h")
        there = "there" if headers.is_file() else "missing"
        raise RuntimeError(
            f"Triton {_version('triton')} launches no kernel: {type(error).__name__}: {error}. What launches "
            f"them is built with a C compiler (CC, gcc or clang: {compiler}) and {headers} ({there})"
        ) from error


def _launch() -> None:
    device = torch.device("cuda")
    norm(torch.ones(1, 64, device=device), torch.ones(64, device=device), 1e-6)
    torch.cuda.synchronize()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def driver() -> str:
    """As nvidia-smi names it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip().splitlines()[0] if said.stdout.strip() else "unknown"


def _found(job: Job) -> Iterator[Found]:
    torch.manual_seed(0)
    device = torch.device("cpu" if job.rehearsal else "cuda")
    dtype = torch.float32 if job.rehearsal else torch.bfloat16
    match job.what:
        case "device":
            yield Found(device=describe(job.rehearsal))
        case "ceilings":
            sizes = {"numbers": 1 << 12, "size": 64, "count": 4} if job.rehearsal else {}
            for found in ceilings.measure(device, dtype, **sizes):
                if isinstance(found, Measurement):
                    yield Found(measurement=found)
                else:
                    yield Found(ceilings=found)
        case "kernels":
            assert job.ceilings is not None
            small = TINY_KERNELS if job.rehearsal else None
            for group in job.groups:
                for measurement in kernels.measure(device, dtype, job.ceilings, small, [group]):
                    yield Found(measurement=measurement)
                yield Found(done=group)
        case "batching":
            yield from _batching(job, device, dtype)
        case "tune":
            about = describe(job.rehearsal)
            wanted = TINY_PRODUCTS if job.rehearsal else tune.products(device)
            folder = Path(job.folder) if job.rehearsal else None
            for measurement in tune.measure(device, dtype, about.name, about.versions, wanted, folder):
                yield Found(measurement=measurement)


def _batching(job: Job, device: torch.device, dtype: torch.dtype) -> Iterator[Found]:
    """Imported here: transformers takes seconds to import."""
    batching: Any = import_module(".batching", __package__)
    shape = TINY if job.rehearsal else SHAPES[job.shape]
    workload = nano_vllm_workload(4, 20, 5, 100) if job.rehearsal else nano_vllm_workload()
    end = BEGAN + job.limit_s - LEAVING_S
    cache = (16, 256) if job.rehearsal else None
    for measurement in batching.measure(device, dtype, shape, workload, Path(job.folder), end, cache):
        yield Found(measurement=measurement)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1])
    except Exception:
        status = 1
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # threads of transformers would go on until every answer is complete
