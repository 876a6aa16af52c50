"""LinearMethod: the seam behind which a quantization owns a linear layer's weights."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ..parallel import Span
from ..weights import Scope


class LinearMethod(Protocol):
    """Life of one: `create` while the model is built · its tensors are loaded · `multiply` for ever."""

    def create(self, scope: Scope, rows: Mapping[str, Span], columns: Span, *, bias: bool) -> None:
        """Declare the tensors of this rank's part of a matrix [sum of rows, columns].

        `rows` names the checkpoint's matrices below `scope` that are stacked into one, in order. What
        must be converted after loading is given to `scope.after_loading`.
        """

    def multiply(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """[n, columns] → [n, sum of rows], plus the bias if there is one, plus `add` if given."""
