"""Tapes: decode steps of few rows without Python between their kernels, as a graph does it on a GPU.

    first step of n rows    every layer runs as always, and each call of a kernel in C is written down;
                            memory that it used is kept
    all others              inputs are copied to where the first step's were; one call makes all calls again

Only what runs in C is written down. So while it records, everything that torch computes is noticed, and a
model that needs any of it between its layers is never played (biases after a sum, experts, torch's kernels).
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..kernels.cpu.library import Library
from ..kernels.native_attention import NativeStep, check
from ..kv_layout import Window
from .attention import StepContext

MOST_BYTES = 4 << 20
"""Of memory that one tape may keep: a token of Qwen3-0.6B's shape needs 0.8 MB, so four rows."""
MOST_TAPES = 16
_MEMORY_ONLY = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.view.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.detach.default,
)
"""What torch may do between kernels: make memory, and look at it in another shape."""
_MOST_ARGUMENTS = 11
Steps = Mapping[Window, StepContext]
Layers = Callable[[Tensor, Steps], Tensor]


class _Call(ctypes.Structure):
    """Recorded of tape.c"""

    _fields_ = (("kind", ctypes.c_int64), ("arguments", ctypes.c_int64 * _MOST_ARGUMENTS))


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down calls of kernels, and notices everything else."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.used: dict[int, Tensor] = {}
        self.computed: set[str] = set()
        """What torch did that cannot be played."""

    def add(self, kind: int, arguments: tuple[int | None, ...], *used: Tensor | None) -> None:
        numbers = [argument or 0 for argument in arguments]
        numbers += [0] * (_MOST_ARGUMENTS - len(numbers))
        self.calls.append(_Call(kind, (ctypes.c_int64 * _MOST_ARGUMENTS)(*numbers)))
        self.used.update({tensor.data_ptr(): tensor for tensor in used if tensor is not None})


def _notice(
    recording: _Recording,
    func: Any,
    types: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    if func not in _MEMORY_ONLY:
        recording.computed.add(str(func))
    return func(*args, **(kwargs or {}))


# Only now: what stands in such a class when it is made is wrapped by torch, and the first call of the wrapper
# imports torch._dynamo, which takes a second and 130 MB of each worker's start.
_Recording.__torch_dispatch__ = _notice  # type: ignore[assignment]


@dataclass
class _Tape:
    calls: "ctypes.Array[_Call]"
    x: Tensor
    rotations: list[Tensor]
    """Cosines and sines of each kind of layer."""
    steps: list[NativeStep]
    """Of each KV group."""
    used: list[Tensor]
    y: Tensor


class Tapes:
    """Of one model, by number of rows."""

    def __init__(self, kernels: Library) -> None:
        self._kernels = kernels
        self._play = kernels.function("tern_play", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
        self._tapes: dict[int, _Tape] = {}
        self._most_rows = MOST_BYTES  # no row is smaller than a byte
        """Rows of which a tape is small enough."""

    @property
    def rows(self) -> list[int]:
        """Numbers of rows that are played."""
        return list(self._tapes)

    def run(self, x: Tensor, steps: Steps, layers: Layers) -> Tensor:
        """layers(x, steps). x [tokens, hidden] is not changed; the result holds until the next call."""
        rows = len(x)
        if rows > self._most_rows:
            return layers(x, steps)
        natives = _natives(steps)
        if not all(native.only_decodes for native in natives):
            return layers(x, steps)
        tape = self._tapes.get(rows)
        if tape is None:
            return (
                self._record(x, steps, natives, layers) if len(self._tapes) < MOST_TAPES else layers(x, steps)
            )
        tape.x.copy_(x)
        for kept, new in zip(tape.rotations, _rotations(steps), strict=True):
            kept.copy_(new)
        for step, native in zip(tape.steps, natives, strict=True):
            step.take(native)
        check(self._play(tape.calls, len(tape.calls)))
        return tape.y

    def _record(self, x: Tensor, steps: Steps, natives: list[NativeStep], layers: Layers) -> Tensor:
        x = x.clone()
        copies: dict[Window, StepContext] = {}
        for window, step in steps.items():
            cos, sin = (None if t is None else t.clone() for t in (step.cos, step.sin))
            copies[window] = StepContext(step.caches, step.metadata, cos, sin)
        recording = _Recording()
        self._kernels.recorder = recording
        try:
            with recording:
                y = layers(x, copies)
        finally:
            self._kernels.recorder = None
        num_bytes = sum(tensor.nbytes for tensor in recording.used.values())
        if recording.computed:
            self._most_rows = 0
        elif num_bytes > MOST_BYTES:
            self._most_rows = len(x) - 1
        else:
            calls = (_Call * len(recording.calls))(*recording.calls)
            used = list(recording.used.values())
            self._tapes[len(x)] = _Tape(calls, x, _rotations(copies), natives, used, y)
        return y


def _natives(steps: Steps) -> list[NativeStep]:
    """Of each KV group, in the order of its first layer."""
    metadata = next(iter(steps.values())).metadata
    return [of_group.native for of_group in dict.fromkeys(metadata)]


def _rotations(steps: Steps) -> list[Tensor]:
    tables = [table for step in steps.values() for table in (step.cos, step.sin)]
    return [table for table in tables if table is not None]
