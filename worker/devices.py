"""Which device a worker computes on: the CPU, or a GPU of its own. Knows no model.

auto    a GPU for each worker if there are enough that can serve, else the CPU, and says why when GPUs idle
cuda    as auto, but refused, with what was found, instead of falling back
"""

import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from protocol.errors import StartupError
from protocol.options import ParallelOptions

if TYPE_CHECKING:
    from .gpu.gpu import GPU

CPU = torch.device("cpu")
LEAST_CAPABILITY = (8, 0)
"""Ampere: bfloat16, and asynchronous copies, which all kernels are built on."""


PDL_CAPABILITY = (9, 0)


class Found(NamedTuple):
    """What is here."""

    names: Sequence[str]
    """Of the GPUs that torch can use."""
    capabilities: Sequence[tuple[int, int]]
    cuda: str | None
    """Version that torch is built with."""
    triton: bool


def choose(options: ParallelOptions, rank: int) -> "GPU | None":
    """None: the CPU. Raises StartupError for what cannot be served on."""
    if options.device == "cpu":
        _check_overlap(options, [])
        return None
    found = look()
    why_not = refusal(found, options.tensor_parallel_size)
    if why_not is None:
        from .gpu.gpu import GPU  # which needs Triton

        _check_overlap(options, found.capabilities[: options.tensor_parallel_size])
        return GPU.open(
            rank, invariant=options.batch_invariant == "on", pdl=options.programmatic_launch == "on"
        )
    if options.device == "cuda":
        raise StartupError(f"--device cuda: {why_not}", hint="use --device cpu, or auto")
    _check_overlap(options, [])
    if found.names and rank == 0:
        print(f"tern: the model is computed on the CPU: {why_not}", file=sys.stderr, flush=True)
    return None


def _check_overlap(options: ParallelOptions, capabilities: Sequence[tuple[int, int]]) -> None:
    """`capabilities`: of the GPUs that are used; none: the CPU. Raises StartupError."""
    if options.programmatic_launch == "on" and not (capabilities and min(capabilities) >= PDL_CAPABILITY):
        here = (
            f"a GPU here has {'.'.join(map(str, min(capabilities)))}" if capabilities else "here is the CPU"
        )
        raise StartupError(
            f"--programmatic-launch on needs GPUs of compute capability 9.0 or newer; {here}",
            hint="leave --programmatic-launch out",
        )


def look() -> Found:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Found(
        names=[torch.cuda.get_device_name(i) for i in range(count)],
        capabilities=[torch.cuda.get_device_capability(i) for i in range(count)],
        cuda=torch.version.cuda,
        triton=importlib.util.find_spec("triton") is not None,
    )


def refusal(found: Found, wanted: int) -> str | None:
    """Why so many workers cannot each have a GPU; None: they can."""
    if not found.names:
        built = f"built with CUDA {found.cuda}" if found.cuda else "built without CUDA"
        return f"torch {torch.__version__} ({built}) finds no NVIDIA GPU that it can use"
    if wanted > len(found.names):
        return f"--tensor-parallel-size {wanted} needs as many GPUs, and {len(found.names)} can be used"
    for name, capability in list(zip(found.names, found.capabilities, strict=True))[:wanted]:
        if capability < LEAST_CAPABILITY:
            least, here = (".".join(map(str, numbers)) for numbers in (LEAST_CAPABILITY, capability))
            return f"{name} has compute capability {here}, and the kernels need {least} or newer"
    if not found.triton:
        return "the kernels need Triton, which is not installed (pip install triton)"
    return None
