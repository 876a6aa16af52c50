"""Which device a worker computes on, and the kernels that it brings."""

from typing import Literal

import torch

from protocol.errors import StartupError

from .kernels.device import DeviceKernels

CPU = torch.device("cpu")


def kernels_of(asked: Literal["auto", "cpu", "cuda"]) -> DeviceKernels | None:
    """None: the CPU. Raises StartupError for what cannot be served on.

    A GPU would bring kernels/triton/device.py. Its kernels are compiled and interpreted, and layers call them
    in the tests; until they have run on a GPU, this says so instead of serving with them.
    """
    if asked == "cuda":
        raise StartupError(
            "--device cuda: the GPU kernels of this build have never run on a GPU, so it serves on the CPU",
            hint="use --device cpu; scripts/gpu_check tests the kernels on a machine with a GPU",
        )
    return None
