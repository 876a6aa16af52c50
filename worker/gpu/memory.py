"""How much of a GPU's memory is there, and how much of it something takes."""

from collections.abc import Callable
from typing import Protocol

import torch


class DeviceMemory(Protocol):
    def available(self, share: float) -> int:
        """Bytes that this process may still take, of this share of the device; what others hold counts."""

    def peak(self, work: Callable[[], None]) -> int:
        """Bytes that it took at most, over those taken before. What it made is given back."""


class CudaMemory:
    """DeviceMemory of the process's current GPU, as far as torch allocates it."""

    def available(self, share: float) -> int:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return max(int(total * share) - (total - free), 0)

    def peak(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
