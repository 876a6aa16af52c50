"""GPU: all that a runner needs of one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from ..graphs import CudaDevice, Device
from ..kernels.triton.device import TritonKernels
from ..steps import Served
from .memory import CudaMemory, DeviceMemory
from .steps import DeviceSteps


@dataclass(frozen=True)
class GPU:
    name: str
    kernels: TritonKernels
    streams: Device
    memory: DeviceMemory

    @classmethod
    def open(cls, index: int, *, invariant: bool, pdl: bool = False) -> Self:
        """The process's own from here on: what it makes is there, and runs on the one main stream."""
        torch.cuda.set_device(index)
        kernels = TritonKernels(torch.device("cuda", index), invariant=invariant, pdl=pdl)
        return cls(torch.cuda.get_device_name(index), kernels, CudaDevice(), CudaMemory())

    @property
    def device(self) -> torch.device:
        return self.kernels.device

    def steps(
        self, served: Served, most_tokens: int, *, eager: bool, agree: Callable[[bool], bool] = bool
    ) -> DeviceSteps:
        """`most_tokens` of one step. `eager`: without graphs; else they are captured now, if all ranks
        `agree`."""
        return DeviceSteps(served, self.kernels, self.streams, most_tokens, eager=eager, agree=agree)
