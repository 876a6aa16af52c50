"""A GPU where there is none: kernels are interpreted on the CPU, and a graph is what a graph is: the calls
that were made when it was captured, on the same tensors and with the same numbers, made again.

So what a replay may not do fails here as it does on a device: a number of Python's that changed after the
capture is not seen, memory that was made outside is not looked up again, and reading a tensor back raises.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from worker.gpu.gpu import GPU
from worker.graphs import Event, Stream
from worker.kernels.triton.device import TritonKernels

READ_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal")
"""Operations that bring a number to the host, which a captured stream does not allow."""


class DoneEvent:
    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class InOrder:
    """A stream that does everything at once."""

    def record(self) -> Event:
        return DoneEvent()

    def wait(self, event: Event) -> None:
        pass


class _Tape(TorchDispatchMode):
    """Writes down what torch does, and what kernels are launched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], None]] = []
        self.kept: list[Any] = []
        self._in_kernel = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in READ_BACK or self._in_kernel, f"{name} in a captured step reads back"
        if not self._in_kernel and not name.startswith(("empty", "new_empty")) and not _is_view(args, out):
            self.calls.append(lambda: _again(func, args, kwargs or {}, out))
            self.kept.append((args, kwargs, out))
        return out

    @contextmanager
    def launches(self) -> Iterator[None]:
        original = InterpretedFunction.run

        def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
            self.calls.append(lambda: original(kernel, *args, **kwargs))
            self.kept.append((args, kwargs))
            self._in_kernel = True
            try:
                original(kernel, *args, **kwargs)
            finally:
                self._in_kernel = False

        InterpretedFunction.run = run
        try:
            yield
        finally:
            InterpretedFunction.run = original


class ReplayedDevice:
    """graphs.Device"""

    def __init__(self) -> None:
        self.main, self.side = InOrder(), InOrder()
        self.replays = 0
        self.lengths: list[int] = []
        """Of the captured graphs, in nodes."""

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        tape = _Tape()
        with tape, tape.launches():
            body()
        self.lengths.append(len(tape.calls))

        def replay() -> None:
            self.replays += 1
            for call in tape.calls:
                call()

        return replay

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        return nullcontext()


class Memory:
    """DeviceMemory of a size; nothing that runs takes any of it."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def available(self, share: float) -> int:
        return int(self._num_bytes * share)

    def peak(self, work: Callable[[], None]) -> int:
        work()
        return self._num_bytes // 8


def open_gpu(device: torch.device, *, invariant: bool = False, num_bytes: int = 1 << 24) -> GPU:
    """The first GPU, or one that is interpreted."""
    if device.type == "cuda":
        return GPU.open(0, invariant=invariant)
    kernels = TritonKernels(device, invariant=invariant)
    return GPU("interpreter", kernels, ReplayedDevice(), Memory(num_bytes))


def _is_view(args: Sequence[Any], out: Any) -> bool:
    """Nothing has to be done again: it looks at what another call writes."""
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if not outputs or any(one is arg for one in outputs for arg in args):
        return False
    known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    return all(one.untyped_storage().data_ptr() in known for one in outputs)


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
        if old is not new:
            old.copy_(new)
