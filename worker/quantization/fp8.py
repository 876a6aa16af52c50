"""FP8 (e4m3) checkpoints, and what all FP8 weights have in common.

    weight            float8_e4m3fn[N, K]
    weight_scale_inv  [ceil(N / 128), ceil(K / 128)]: of blocks, as DeepSeek and Qwen publish them; or
    weight_scale      a scalar, as AutoFP8 and modelopt write them (Mistral as weight_scale_inv, too), or
                      [N, 1], as FBGEMM does

Activations keep the model's dtype on the CPU, and on a GPU in steps of few tokens. In large ones they are
rounded there, too, if the checkpoint was made for it: with scales of their own rows, or of 128 columns beside
blocks, which lose less than a static one (`input_scale`), so that is not needed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from msgspec import Struct
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import StoredTensor, TensorPart
from ..kernels.matmul import FP8Part, Matrix
from ..kernels.matrices import Kind, Matrices
from ..parallel import whole
from .format import Cut, Format, Role
from .unquantized import Unquantized

LEAST_BLOCK = 32
"""Columns that a block may have after a split; fewer would be more scales than weights are worth."""
COLUMN_UNIT = 4
"""Columns that kernels read at once, which share a scale."""


def check_block(block: tuple[int, int]) -> None:
    """Raises StartupError for blocks (rows, columns) that are not supported."""
    if min(block) < LEAST_BLOCK or block[1] % COLUMN_UNIT:
        raise StartupError(
            f"FP8 blocks of {list(block)} are not supported; they must be at least {LEAST_BLOCK} wide, "
            f"and columns a multiple of {COLUMN_UNIT}"
        )


@dataclass(frozen=True)
class FP8:
    """A Format. The weight may be a view of the mapped file."""

    scale: str
    """Name of the tensor of scales."""
    block: tuple[int, int] | Literal["tensor", "channel"]
    surplus: Sequence[str] = ("input_scale", "activation_scale", "input_scale_ub")
    quantize_input: bool = True
    """Activations may be rounded, too."""

    kind: ClassVar[Kind] = "fp8"
    combined: ClassVar[bool] = False

    def blocks(self, cut: Cut) -> tuple[int, int] | None:
        block = self._block(cut)
        return None if block[1] >= cut.columns.length else block

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        weight = cut.tensor("weight", cut.rows, cut.columns, dtypes=(torch.float8_e4m3fn,), kept=True)
        if self.block == "tensor":
            return [weight, cut.tensor(self.scale, whole(1))]
        if self.block == "channel":
            return [weight, cut.tensor(self.scale, cut.rows, whole(1))]
        self._block(cut)
        (rows, columns), (n, k) = self.block, cut.whole
        return [weight, cut.tensor(self.scale, whole(-(-n // rows)), whole(-(-k // columns)))]

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> FP8Part:
        weight, scales = tensors[0], tensors[1].float()
        rows, columns = self._block(cut)
        if self.block == "tensor":
            scales = scales.view(1, 1)
        elif self.block != "channel":
            down = torch.arange(cut.rows.start, cut.rows.start + cut.rows.length, rows) // self.block[0]
            across = torch.arange(cut.columns.start, cut.columns.start + cut.columns.length, columns)
            scales = scales[down][:, across // self.block[1]]
        return FP8Part(weight, scales.contiguous(), (rows, columns))

    def join(
        self, parts: Sequence[FP8Part], cuts: Sequence[Cut], bias: Tensor | None, matrices: Matrices
    ) -> Matrix:
        return matrices.fp8(parts, bias, quantize_input=self.quantize_input)

    def num_bytes(self, cut: Cut, dtype: torch.dtype) -> int:
        (rows, columns), (n, k) = self._block(cut), cut.sizes
        return n * k + 4 * -(-n // rows) * -(-k // columns)

    def _block(self, cut: Cut) -> tuple[int, int]:
        """The blocks of this rank's part: smaller ones where the split goes through the checkpoint's."""
        if self.block == "tensor":
            return cut.sizes
        if self.block == "channel":
            return 1, cut.columns.length
        rows, columns = math.gcd(self.block[0], cut.rows.start), math.gcd(self.block[1], cut.columns.start)
        if columns < LEAST_BLOCK or columns % COLUMN_UNIT:
            raise StartupError(
                f"--tensor-parallel-size cuts {cut.name!r} at column {cut.columns.start}, which leaves "
                f"{columns} columns of the checkpoint's blocks of {self.block[1]}",
                hint="use a smaller tensor parallel size",
            )
        return rows, columns


class FP8Config(Struct, frozen=True, kw_only=True):
    """`quantization_config` of `quant_method: fp8`; further keys tell how it was made."""

    weight_block_size: tuple[int, int] | None = None
    fmt: str = "e4m3"
    scale_fmt: str | None = None
    expert_dtype: str = "fp8"
    activation_scheme: str = "dynamic"

    def check(self) -> None:
        """Raises StartupError for what is not supported."""
        for name, value, supported in (
            ("fmt", self.fmt, ("e4m3",)),
            ("scale_fmt", self.scale_fmt, (None, "float")),
            ("expert_dtype", self.expert_dtype, ("fp8",)),
            ("activation_scheme", self.activation_scheme, ("dynamic", "static")),
        ):
            if value not in supported:
                raise StartupError(
                    f"FP8 checkpoints with {name} = {value!r} are not supported; it must be {supported[-1]!r}"
                )
        if self.weight_block_size is not None:
            check_block(self.weight_block_size)


class FbgemmConfig(Struct, frozen=True, kw_only=True):
    """Of `quant_method: fbgemm_fp8`, as Llama 3.1 405B was published. Nothing in it changes the weights."""

    def check(self) -> None: ...


class ModelOptConfig(Struct, frozen=True, kw_only=True):
    """Of `quant_method: modelopt`, as NVIDIA publishes; further keys tell how it was made."""

    quant_algo: str = "unnamed"

    def check(self) -> None:
        """Raises StartupError for what is not supported."""
        if self.quant_algo != "FP8":
            raise StartupError(
                f"modelopt with quant_algo {self.quant_algo!r} is not supported; it must be 'FP8'"
            )


@dataclass(frozen=True)
class FP8Checkpoint:
    """Formats: what is stored as float8_e4m3fn is quantized."""

    config: FP8Config
    tensors: Mapping[str, StoredTensor]
    scope: Literal["tensor", "channel"] = "tensor"
    """What shares a scale, where that is no block."""

    name: ClassVar[str] = "fp8"

    def format_of(self, module: str, role: Role) -> Format[Any]:
        stored = self._stored(f"{module}.weight")
        if role == "tied head" or stored is None or stored.dtype != torch.float8_e4m3fn:
            return Unquantized()
        inverse = self._stored(f"{module}.weight_scale_inv") is not None
        name = "weight_scale_inv" if inverse or self.config.weight_block_size else "weight_scale"
        return FP8(name, self.config.weight_block_size or self.scope)

    def _stored(self, name: str) -> StoredTensor | None:
        """That of a bare model lacks the first part of all names."""
        return self.tensors.get(name) or self.tensors.get(name.partition(".")[2])
