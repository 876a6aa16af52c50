"""PackedMatrix: a matrix of torch's own, packed once for oneDNN.

oneDNN multiplies about twice as fast as the BLAS behind `F.linear`. Measured on one Zen 5 core (AVX-512), µs,
plain against packed:

    [rows, 192] × [192, 1024]    1 row 12 / 19 · 4 rows 35 / 21 · 32 rows 145 / 70 · 128 rows 530 / 230
    [1, 4096] × [4096, 4096]     float32 2760 / 1450 · bfloat16 2040 / 880

A call into oneDNN costs some 10 µs by itself, which only a few float32 rows of a small layer feel: for
them small weights are kept in both forms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 4
"""Below this many rows a small float32 weight is multiplied plain."""
SMALL_BYTES = 4 << 20
EXPECTED_ROWS = 16
"""oneDNN packs for an expected number of rows: 16 loses nothing at 128, and 1 loses a lot at 4."""

_pack = torch.ops.mkldnn._reorder_linear_weight
_multiply = torch.ops.mkldnn._linear_pointwise.default
_multiply_add = torch.ops.mkldnn._linear_pointwise.binary


class PackedMatrix:
    """A Matrix [rows, columns] of torch's."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        self.bias = bias
        self.plain: Tensor | None = weight
        self.packed: Tensor | None = None
        if _onednn_multiplies(weight.dtype):
            self.packed = _pack(weight, EXPECTED_ROWS)
            if weight.dtype != torch.float32 or weight.nbytes > SMALL_BYTES:
                self.plain = None

    def multiply(self, x: Tensor, add: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        y = self._product(x, add)
        return y if out_dtype is None else y.to(out_dtype)

    def _product(self, x: Tensor, add: Tensor | None) -> Tensor:
        if self.packed is not None and (self.plain is None or x.shape[0] >= FEW_ROWS):
            if add is None:
                return _multiply(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]
            return _multiply_add(x, add, self.packed, self.bias, "add")  # type: ignore[no-any-return]
        assert self.plain is not None
        if add is None:
            return F.linear(x, self.plain, self.bias)
        if self.bias is not None:
            add = add + self.bias
        return torch.addmm(add, x, self.plain.t())


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
