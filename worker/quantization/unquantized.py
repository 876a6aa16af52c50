"""Weights as they are. Knows nothing of how a layer is split over ranks.

On the CPU a weight is packed once for oneDNN, which multiplies about twice as fast as the BLAS behind
`F.linear`. Measured on one Zen 5 core (AVX-512), µs, plain against packed:

    [rows, 192] × [192, 1024]    1 row 12 / 19 · 4 rows 35 / 21 · 32 rows 145 / 70 · 128 rows 530 / 230
    [1, 4096] × [4096, 4096]     float32 2760 / 1450 · bfloat16 2040 / 880

A call into oneDNN costs some 10 µs by itself, which only a few float32 rows of a small layer feel: for
them small weights are kept in both forms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel import Span
from ..weights import Scope
from .method import Rows

FEW_ROWS = 4
"""Below this many rows a small float32 weight is multiplied plain."""
SMALL_BYTES = 4 << 20
EXPECTED_ROWS = 16
"""oneDNN packs for an expected number of rows: 16 loses nothing at 128, and 1 loses a lot at 4."""

_pack = torch.ops.mkldnn._reorder_linear_weight
_multiply = torch.ops.mkldnn._linear_pointwise.default
_multiply_add = torch.ops.mkldnn._linear_pointwise.binary


class Unquantized:
    """A LinearMethod. The weight is [rows, columns], as in the checkpoint."""

    def __init__(self) -> None:
        self.plain: Tensor | None = None
        self.packed: Tensor | None = None
        self.bias: Tensor | None = None

    def create(
        self, scope: Scope, rows: Rows, columns: Span, *, bias: bool, transposed: bool = False
    ) -> None:
        num_rows = sum(span.length for spans in rows.values() for span in spans)
        self.plain = torch.empty(num_rows, columns.length, dtype=scope.dtype)
        if bias:
            self.bias = torch.empty(num_rows, dtype=scope.dtype)
        begin = 0
        for name, spans in rows.items():
            place = scope / name
            total, above = sum(span.total for span in spans), 0
            for span in spans:
                part, start = slice(begin, begin + span.length), above + span.start
                into, whole, starts = self.plain[part], (total, columns.total), (start, columns.start)
                if transposed:
                    into, whole, starts = into.t(), whole[::-1], starts[::-1]
                place.want("weight", whole, into, starts)
                if self.bias is not None:
                    place.want("bias", (total,), self.bias[part], (start,))
                begin, above = part.stop, above + span.total
        scope.after_loading(self._convert)

    def share(self, scope: Scope, weight: Tensor) -> None:
        """Multiply by a matrix that another layer declares: a tied embedding."""
        self.plain = weight
        scope.after_loading(self._convert)

    def multiply(self, x: Tensor, add: Tensor | None = None) -> Tensor:
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

    def _convert(self) -> None:
        assert self.plain is not None
        if not _onednn_multiplies(self.plain.dtype):
            return
        self.packed = _pack(self.plain, EXPECTED_ROWS)
        if self.plain.dtype != torch.float32 or self.plain.nbytes > SMALL_BYTES:
            self.plain = None


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
