"""Numbers on their way to a device that executes as late as it may."""

import numpy as np
import torch

from tests.worker.test_graphs import FakeDevice
from worker.gpu.staging import ALIGNMENT, BUFFERS, Array, Staging


def test_nobody_waits_and_nothing_is_overwritten_before_it_was_copied() -> None:
    device = FakeDevice()
    staging = Staging(device, torch.device("cpu"))
    numbers = [np.arange(i, i + 3, dtype=np.int64) for i in range(BUFFERS + 2)]
    there = [staging.put(some)[0] for some in numbers[:BUFFERS]]
    assert len(device.main.queue) == 2 * BUFFERS, "copies and their events, none of them made yet"
    there += [staging.put(some)[0] for some in numbers[BUFFERS:]]
    assert torch.equal(there[1], torch.from_numpy(numbers[1])), "the host waited for its buffer"
    device.run_until(lambda: not device.main.queue)
    for tensor, expected in zip(there, numbers, strict=True):
        assert tensor.tolist() == expected.tolist()


def test_arrays_begin_where_kernels_expect_them() -> None:
    device = FakeDevice()
    staging = Staging(device, torch.device("cpu"))
    given: list[Array] = [
        np.arange(5, dtype=np.int32),
        np.empty(0, dtype=np.int64),
        np.ones((2, 3), dtype=np.float32),
    ]
    there = staging.put(*given)
    device.run_until(lambda: not device.main.queue)
    for tensor, expected in zip(there, given, strict=True):
        assert np.array_equal(tensor.numpy(), expected)
        assert tensor.storage_offset() * tensor.itemsize % ALIGNMENT == 0
    assert [tuple(tensor.shape) for tensor in staging.put(np.empty((0, 4), dtype=np.int32))] == [(0, 4)]
