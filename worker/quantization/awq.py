"""AWQ checkpoints (Lin et al., 2023), as AutoAWQ writes them: 4 bits, packed for its "gemm" kernel.

qweight  int32[K, N / 8]          eight neighbours along N in one word, in the order 0 2 4 6 1 3 5 7
qzeros   int32[groups, N / 8]     likewise
scales   [groups, N]
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from msgspec import Struct
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import TensorPart
from ..parallel import whole
from .format import Cut, Format, Role
from .gptq import is_stored
from .grouped import Codes, Grouped, check_group
from .packing import unpack
from .unquantized import Unquantized

PER_WORD = 8
FIELDS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which field of a word holds its first number, its second, …"""


class AWQConfig(Struct, frozen=True, kw_only=True):
    """`quantization_config`; further keys tell how it was made."""

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    version: str | None = None
    format: str | None = None
    checkpoint_format: str | None = None
    backend: str = "autoawq"

    def check(self) -> int | None:
        """The group. Raises StartupError for what is not supported."""
        version = (self.checkpoint_format or self.version or self.format or "gemm").lower()
        if version != "gemm" or self.bits != 4:
            raise StartupError(
                f"AWQ checkpoints of version {version!r} and {self.bits} bits are not supported; "
                "it must be 'gemm' and 4"
            )
        if not self.zero_point:
            raise StartupError("AWQ with zero_point = False is not supported; it must be True")
        return check_group(self.group_size, self.bits, "AWQ weights")


@dataclass(frozen=True)
class AWQStorage:
    group: int | None

    bits: ClassVar[int] = 4
    has_zeros: ClassVar[bool] = True
    scattered: ClassVar[bool] = False
    surplus: ClassVar[Sequence[str]] = ()

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        words = cut.units(cut.rows, PER_WORD, "packed words")
        groups = cut.units(cut.columns, self.group, "groups") if self.group else whole(1)
        integers = (torch.int32,)
        return [
            cut.tensor("qweight", cut.columns, words, dtypes=integers),
            cut.tensor("qzeros", groups, words, dtypes=integers),
            cut.tensor("scales", groups, cut.rows),
        ]

    def unpack(self, cut: Cut, tensors: Sequence[Tensor]) -> Codes:
        qweight, qzeros, scales = tensors
        return Codes(unpack(qweight, 4, FIELDS).t(), scales.t(), unpack(qzeros, 4, FIELDS).t())


@dataclass(frozen=True)
class AWQ:
    """Formats: what is stored as `qweight` is quantized."""

    config: AWQConfig
    names: AbstractSet[str]
    """Of the checkpoint's tensors."""

    name: ClassVar[str] = "awq"

    def format_of(self, module: str, role: Role) -> Format[Any]:
        group = self.config.check()
        if role == "tied head" or not is_stored(f"{module}.qweight", self.names):
            return Unquantized()
        return Grouped(AWQStorage(group))
