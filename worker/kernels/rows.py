"""Norms and activations of rows in C (cpu/rows.c): in float32, rounded once, one call for several of torch's.
The torch reference is layers/norm.py and activation.py.
"""

import ctypes
import struct

import torch
from torch import Tensor

from . import activation
from .activation import Activation
from .cpu.library import Library
from .device import DeviceKernels
from .native_attention import DTYPES

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_SILU, _GELU_TANH = 0, 1
NORM, ACTIVATE = 1, 2
"""As tape.c numbers its calls."""
_MOST_SIZE = 65536


class RowNorm:
    """out = add + norm(x) · weight + bias"""

    def __init__(
        self, kernels: Library, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool
    ) -> None:
        """`centred`: the mean is subtracted first, as LayerNorm does; otherwise RMSNorm."""
        self._call = kernels.function(
            "tern_norm", ctypes.c_int, _INT, *[_POINTER] * 5, *[_INT] * 4, ctypes.c_double
        )
        self._weight, self._bias = weight, bias
        self._eps = eps
        self._eps_bits = int.from_bytes(struct.pack("<d", eps), "little", signed=True)
        self._kernels = kernels
        self._kind = int(centred)

    @staticmethod
    def supports(size: int) -> bool:
        return size <= _MOST_SIZE

    def __call__(self, x: Tensor, add: Tensor | None) -> Tensor:
        """x, and `add` if given, [rows, size] of one type."""
        x = x.contiguous()
        add = None if add is None else add.contiguous()  # a copy must live until the call returns
        out = torch.empty_like(x)
        size = x.shape[-1]
        arguments = (
            self._kind,
            x.data_ptr(),
            self._weight.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            None if add is None else add.data_ptr(),
            out.data_ptr(),
            DTYPES[x.dtype],
            DTYPES[self._weight.dtype],
            x.numel() // size,
            size,
        )
        self._call(*arguments, self._eps)
        if self._kernels.recorder is not None:
            self._kernels.recorder.add(NORM, (*arguments, self._eps_bits), x, add, out)
        return out


def fused(function: Activation, kernels: Library | None, device: DeviceKernels | None = None) -> Activation:
    """The same activation of the device, or in C; itself where there is neither."""
    if device is not None:
        return device.activation(function)
    if kernels is None or function not in _KINDS:
        return function
    kind, gated = _KINDS[function]
    call = kernels.function("tern_activate", None, _INT, *[_POINTER] * 3, *[_INT] * 4)

    def activate(x: Tensor) -> Tensor:
        x = x.contiguous()
        rows, width = x.shape
        size = width // 2 if gated else width
        out = torch.empty(rows, size, dtype=x.dtype)
        gate = x.data_ptr()
        up = gate + size * x.element_size() if gated else None
        arguments = kind, gate, up, out.data_ptr(), DTYPES[x.dtype], rows, size, width
        call(*arguments)
        if kernels.recorder is not None:
            kernels.recorder.add(ACTIVATE, arguments, x, out)
        return out

    return activate


_KINDS: dict[Activation, tuple[int, bool]] = {
    activation.silu_and_multiply: (_SILU, True),
    activation.gelu_tanh_and_multiply: (_GELU_TANH, True),
    activation.gelu_tanh: (_GELU_TANH, False),
}
"""C's number of the function, and whether it takes gate and up."""
