"""Staging: takes a step's numbers to the device, without the host waiting for what runs there.

    arrays ─ packed ─▶ pinned memory ─ one copy, on the main stream ─▶ one piece of device memory ─ views

Arrays begin at multiples of ALIGNMENT, so that kernels, which are compiled for pointers that are aligned or
not, are compiled for one kind only. A pinned buffer is written again when its last copy is done, BUFFERS
copies later.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graphs import Device, Event

ALIGNMENT = 64
"""Bytes; Triton asks for 16."""
BUFFERS = 16
"""More copies than two steps make: with fewer the host would wait for one that waits for the step before."""
FIRST_BYTES = 1 << 16
DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}
Array = NDArray[np.int64] | NDArray[np.int32] | NDArray[np.float32]


class Staging:
    def __init__(self, streams: Device, device: torch.device) -> None:
        self._streams, self._device = streams, device
        self._pinned = device.type == "cuda"
        self._hosts = [self._host(FIRST_BYTES) for _ in range(BUFFERS)]
        self._copied: list[Event | None] = [None] * BUFFERS
        self._next = 0

    def put(self, *arrays: Array) -> list[Tensor]:
        """The same arrays on the device, for what is launched on the main stream from now on."""
        offsets, end = [], 0
        for array in arrays:
            offsets.append(end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if end == 0:
            return [
                torch.empty(array.shape, dtype=DTYPES[array.dtype], device=self._device) for array in arrays
            ]
        host = self._free_host(end)
        packed = host.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            packed[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        there, filled = torch.empty(end, dtype=torch.uint8, device=self._device), host[:end]
        with self._streams.on(self._streams.main):
            there.copy_(filled, non_blocking=True)
        self._copied[self._next] = self._streams.main.record()
        self._next = (self._next + 1) % BUFFERS
        return [
            there[offset : offset + array.nbytes].view(DTYPES[array.dtype]).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=True)
        ]

    def _free_host(self, num_bytes: int) -> Tensor:
        if (copied := self._copied[self._next]) is not None:
            copied.synchronize()
        if self._hosts[self._next].nbytes < num_bytes:
            self._hosts[self._next] = self._host(2 * num_bytes)
        return self._hosts[self._next]

    def _host(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)
