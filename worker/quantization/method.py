"""LinearMethod: the seam behind which a quantization owns a linear layer's weights."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ..parallel import Span
from ..weights import Scope

Rows = Mapping[str, Sequence[Span]]
"""The checkpoint's matrices that are stacked into one, in order, and the spans of rows that each consists
of: `{"q_proj": [q], "k_proj": [k]}`, or `{"qkv_proj": [q, k, v]}` where the checkpoint has them fused."""


class LinearMethod(Protocol):
    """Life of one: `create` while the model is built · its tensors are loaded · `multiply` for ever."""

    def create(
        self, scope: Scope, rows: Rows, columns: Span, *, bias: bool, transposed: bool = False
    ) -> None:
        """Declare the tensors of this rank's part of a matrix [sum of rows, columns].

        `rows` are named as below `scope`; `transposed`: the checkpoint stores [columns, rows]. What must be
        converted after loading is given to `scope.after_loading`.
        """

    def multiply(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """[n, columns] → [n, sum of rows], plus the bias if there is one, plus `add` if given."""
