"""DeviceAdapters: which adapter each slot's sequence has, on the device, where graphs look it up.

of_slot   int32 [slots + 1]   the first is of NO_SLOT, which only pads: none
"""

import numpy as np
import torch
from torch import Tensor

from protocol.steps import StepPlan

from ..batch import Rows
from ..kernels.lora import NONE
from ..lora import Adapters
from .staging import Staging


class DeviceAdapters:
    def __init__(self, adapters: Adapters, staging: Staging, device: torch.device) -> None:
        self._adapters, self._rows, self._staging = adapters, adapters.rows, staging
        self._of_slot = torch.full((len(adapters.of_slot) + 1,), NONE, dtype=torch.int32, device=device)

    def edit(self, plan: StepPlan) -> None:
        """Sequences of the plan have started."""
        if plan.started:
            slots = np.array([start.slot for start in plan.started], dtype=np.int64)
            places, numbers = self._staging.put(slots + 1, self._adapters.of_slot[slots])
            self._of_slot.index_copy_(0, places, numbers)

    def decode(self, slots: Tensor) -> None:
        """The next products are of rows of these slots, int32 on the device. All launched on it, so that a
        graph replays it."""
        self._rows.numbers = self._of_slot.index_select(0, slots + 1)
        self._rows.some = True

    def mixed(self, rows: Rows) -> None:
        """The next products are of these rows' tokens."""
        numbers = self._adapters.of_slot[rows.slots]
        self._rows.some = bool((numbers != NONE).any())
        if self._rows.some:
            (self._rows.numbers,) = self._staging.put(numbers[rows.token_rows])

    def none(self) -> None:
        """The next products are of rows without sequences."""
        self._rows.some = False
