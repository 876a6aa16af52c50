"""GPTQ checkpoints (Frantar et al., 2022), as AutoGPTQ and GPTQModel write them: 4 or 8 bits.

qweight  int32[K · bits / 32, N]       codes along K, the first in the lowest bits
qzeros   int32[groups, N · bits / 32]  zero points along N: less one in the format "gptq", as they are in
                                       "gptq_v2"
scales   [groups, N]
g_idx    int32[K]                      the group of each column, which desc_act shuffles
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from msgspec import Struct, field
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import FLOATS, TensorPart
from ..parallel import whole
from .format import Cut, Format, Role
from .grouped import Codes, Grouped, check_group
from .packing import WORD, unpack
from .unquantized import Unquantized


class GPTQConfig(Struct, frozen=True, kw_only=True):
    """`quantization_config`; further keys tell how it was made."""

    bits: int
    group_size: int = 128
    desc_act: bool = False
    sym: bool = True
    checkpoint_format: str | None = None
    format: str | None = None
    is_marlin_format: bool = False
    pack_dtype: str = "int32"
    dynamic: dict[str, dict[str, Any]] | None = field(default=None)

    def check(self) -> int | None:
        """The group. Raises StartupError for what is not supported."""
        form = self.checkpoint_format or self.format or "gptq"
        if form not in ("gptq", "gptq_v2") or self.is_marlin_format:
            raise StartupError(
                f"GPTQ checkpoints of the format {'marlin' if self.is_marlin_format else form!r} are not "
                "supported; it must be 'gptq' or 'gptq_v2'"
            )
        if self.pack_dtype != "int32":
            raise StartupError(
                f"GPTQ with pack_dtype {self.pack_dtype!r} is not supported; it must be 'int32'"
            )
        for pattern in self.dynamic or ():
            if not pattern.startswith("-:"):
                raise StartupError(
                    f"GPTQ's `dynamic` gives {pattern!r} other settings; only '-:…' is supported"
                )
        return check_group(self.group_size, self.bits, "GPTQ weights")


@dataclass(frozen=True)
class GPTQStorage:
    bits: int
    group: int | None
    has_zeros: bool
    v2: bool
    desc_act: bool
    has_g_idx: bool

    surplus: ClassVar[Sequence[str]] = ("bias",)
    """Some writers add one of zeros where the layer has none."""

    @property
    def scattered(self) -> bool:
        return self.desc_act and self.group is not None

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        per_word = WORD // self.bits
        if self.desc_act:
            cut.undivided("whose groups are of scattered columns (desc_act)")
        words = cut.units(cut.columns, per_word, "packed words")
        groups = cut.units(cut.columns, self.group, "groups") if self.group else whole(1)
        zeros = cut.units(cut.rows, per_word, "packed words")
        integers = (torch.int32,)
        parts = [
            cut.tensor("qweight", words, cut.rows, dtypes=integers),
            cut.tensor("qzeros", groups, zeros, dtypes=integers),
            cut.tensor("scales", groups, cut.rows, dtypes=FLOATS),
        ]
        if self.has_g_idx:
            parts.append(cut.tensor("g_idx", cut.columns, dtypes=(torch.int32, torch.int64)))
        return parts

    def unpack(self, cut: Cut, tensors: Sequence[Tensor]) -> Codes:
        qweight, qzeros, scales, *g_idx = tensors
        codes = unpack(qweight.t(), self.bits)
        if not self.v2:  # added to whole words, as they were subtracted, so that a zero point of 0 borrows
            qzeros = qzeros + (0x11111111 if self.bits == 4 else 0x01010101)
        zeros = unpack(qzeros, self.bits)
        groups = None
        if g_idx and self.group:
            groups = g_idx[0] if self.desc_act else g_idx[0] - cut.columns.start // self.group
        return Codes(codes, scales.t(), zeros.t(), groups)


@dataclass(frozen=True)
class GPTQ:
    """Formats: what is stored as `qweight` is quantized."""

    config: GPTQConfig
    names: AbstractSet[str]
    """Of the checkpoint's tensors."""

    name: ClassVar[str] = "gptq"

    def format_of(self, module: str, role: Role) -> Format[Any]:
        config, group = self.config, self.config.check()
        if role == "tied head" or not is_stored(f"{module}.qweight", self.names):
            return Unquantized()
        return Grouped(
            GPTQStorage(
                bits=config.bits,
                group=group,
                has_zeros=not config.sym,
                v2=(config.checkpoint_format or config.format) == "gptq_v2",
                desc_act=config.desc_act,
                has_g_idx=is_stored(f"{module}.g_idx", self.names),
            )
        )


def is_stored(name: str, names: AbstractSet[str]) -> bool:
    """Whether the checkpoint has this tensor; that of a bare model lacks the first part of all names."""
    return name in names or name.partition(".")[2] in names
