"""Format: the seam behind which a quantization owns how matrices are stored, loaded and multiplied.

    Formats ──format_of("model.layers.0.mlp.up_proj")──▶ Format
                                                          ├─ parts    which tensors of the checkpoint to read
                                                          ├─ load     those tensors → one part of a matrix
                                                          ├─ join     parts below one another → a Matrix
                                                          └─ num_bytes, before anything is read

Formats are stateless and frozen: parts whose formats are equal can be joined. Multiplication is the business
of the device's matrices (kernels/matrices.py).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import FLOATS, TensorPart
from ..kernels.matmul import Matrix
from ..kernels.matrices import Kind as MatrixKind
from ..kernels.matrices import Matrices
from ..parallel import Span, whole

Part = TypeVar("Part")
Given = TypeVar("Given", contravariant=True)
"""Parts"""


class Cut(NamedTuple):
    """The rows and columns that this rank holds of a matrix [rows, columns] of the checkpoint."""

    name: str
    """Of the module: "model.layers.0.self_attn.q_proj"."""
    rows: Span
    columns: Span
    transposed: bool = False
    """An unquantized matrix is stored as [columns, rows]."""

    @property
    def whole(self) -> tuple[int, int]:
        return self.rows.total, self.columns.total

    @property
    def sizes(self) -> tuple[int, int]:
        return self.rows.length, self.columns.length

    def tensor(
        self, suffix: str, *dims: Span, dtypes: Sequence[torch.dtype] = FLOATS, kept: bool = False
    ) -> TensorPart:
        """A part of the tensor `suffix` of this module."""
        shape, starts, sizes = (tuple(axis) for axis in zip(*dims, strict=True)) if dims else ((), (), ())
        return TensorPart(f"{self.name}.{suffix}", shape, starts, sizes, tuple(dtypes), kept)

    def units(self, span: Span, unit: int, what: str) -> Span:
        """The span counted in units (groups, packed words) of so many elements; the last may be incomplete.

        Raises StartupError where this rank's part does not consist of whole ones.
        """
        if span.length == span.total:
            return whole(-(-span.total // unit))
        stop = span.start + span.length
        if span.start % unit or (stop % unit and stop != span.total):
            raise StartupError(
                f"--tensor-parallel-size cuts {self.name!r} at {span.start} and {stop}, in the middle of "
                f"{what} of {unit}",
                hint="use a smaller tensor parallel size, or another checkpoint",
            )
        start = span.start // unit
        return Span(-(-span.total // unit), start, -(-stop // unit) - start)

    def undivided(self, because: str) -> None:
        """Raises StartupError if this rank holds only some columns."""
        if self.columns.length < self.columns.total:
            raise StartupError(
                f"{self.name!r} is a matrix {because}: --tensor-parallel-size cannot split it",
                hint="use --tensor-parallel-size 1, or another checkpoint",
            )


class Kind(Protocol[Given]):
    """What parts of a matrix are made into."""

    @property
    def kind(self) -> MatrixKind:
        """Which of a device's matrices."""

    def join(
        self, parts: Sequence[Given], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        """Parts of equal formats, one under the other."""

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        """Memory of the part, once it is loaded."""


class Format(Kind[Part], Protocol[Part]):
    """How one matrix is stored, and what is made of it."""

    @property
    def surplus(self) -> Sequence[str]:
        """Tensors that may stand beside it and are not needed."""

    @property
    def combined(self) -> bool:
        """Its matrix is made of several of its kind, or takes its inputs in another order."""

    def blocks(self, cut: Cut) -> tuple[int, int] | None:
        """Rows and columns that share a scale, if they are blocks; None: scales of rows, groups, or none."""

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        """What to read. Raises StartupError when the cut goes through something that is one."""

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> Part:
        """A part of a matrix, from these tensors. Raises StartupError when they cannot be right."""


Role = Literal["linear", "router", "head", "tied head"]
"""What a matrix does in the model. A router's is small, and small errors change which expert is picked; a
tied head's is the embedding, which checkpoints do not quantize."""


class Formats(Protocol):
    """What one checkpoint, served in one way, does with each of its matrices."""

    @property
    def name(self) -> str:
        """For people and for the model's fingerprint."""

    def format_of(self, module: str, role: Role) -> Format[Any]:
        """Raises StartupError."""
