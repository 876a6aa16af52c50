"""compressed-tensors checkpoints, as llm-compressor writes them. Read from its `quantization_config`:

format                        tensors of a module                                     becomes
int-quantized (W8A8, W8A16)   weight int8, weight_scale                               Int8
float-quantized               weight float8_e4m3fn, weight_scale                      FP8
naive-quantized               either
pack-quantized (W4A16, W8A16) weight_packed int32, weight_scale, weight_zero_point    Grouped
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from msgspec import Struct
from torch import Tensor

from protocol.errors import StartupError

from ..checkpoint import TensorPart
from ..kernels.matmul import Int8Part
from ..parallel import whole
from .format import Cut, Format, Role
from .fp8 import FP8, check_block
from .grouped import Codes, Grouped, check_group
from .int8 import Int8
from .packing import WORD, unpack
from .unquantized import Unquantized

NAIVE = ("naive-quantized", "int-quantized", "float-quantized")


class Args(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of weights or activations."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    block_structure: tuple[int, int] | str | None = None
    dynamic: bool | str = False
    actorder: bool | str | None = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: str | None = None
    observer_kwargs: Any = None
    is_mse: bool | None = None

    @property
    def scope(self) -> str:
        """What shares a scale."""
        if self.strategy is not None:
            return self.strategy
        if self.group_size is None:
            return "tensor"
        return "channel" if self.group_size == -1 else "group"

    def __str__(self) -> str:
        kind = "" if self.symmetric else "asymmetric "
        dynamic = "dynamic " if self.dynamic else ""
        return f"{dynamic}{kind}{self.type}{self.num_bits} per {self.scope}"


class Group(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    targets: tuple[str, ...]
    weights: Args | None = None
    input_activations: Args | None = None
    output_activations: Args | None = None
    format: str | None = None


class CompressedTensorsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`quantization_config`, whole: a key that is not known here could change the weights."""

    config_groups: dict[str, Group]
    quant_method: str = "compressed-tensors"
    format: str = "dense"
    ignore: tuple[str, ...] | None = ()
    kv_cache_scheme: Any = None
    """How an engine with an 8-bit cache may round keys and values; weights do not depend on it."""
    quantization_status: str = "compressed"
    global_compression_ratio: Any = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    moe_sparsity_config: Any = None
    run_compressed: bool = True
    version: str | None = None

    def check(self) -> None:
        """Raises StartupError for what is not supported."""
        for name, value in (
            ("transform_config", self.transform_config),
            ("moe_sparsity_config", self.moe_sparsity_config),
        ):
            if value:
                raise StartupError(f"compressed-tensors with a {name} is not supported")
        sparsity = (self.sparsity_config or {}).get("format", "dense")
        if sparsity != "dense":
            raise StartupError(f"compressed-tensors with sparse weights ({sparsity!r}) is not supported")
        if self.quantization_status not in ("compressed", "frozen"):
            raise StartupError(
                f"compressed-tensors with quantization_status {self.quantization_status!r} is not finished; "
                "it must be 'compressed'"
            )
        for group in self.config_groups.values():
            for target in group.targets:
                if not (target.startswith("re:") or "." in target or target in ("Linear", "lm_head")):
                    raise StartupError(
                        f"compressed-tensors with the target {target!r} is not supported; "
                        "it must be 'Linear', a name, or 're:' and a pattern"
                    )
            format_of_group(group, self.format)


@dataclass(frozen=True)
class PackedStorage:
    """See grouped.Storage. Codes are packed along columns, zero points along rows."""

    bits: int
    group: int | None
    has_zeros: bool
    has_g_idx: bool
    """The group of each column, which `actorder: group` shuffles."""

    surplus: ClassVar[Sequence[str]] = ("weight_shape",)

    @property
    def scattered(self) -> bool:
        return self.has_g_idx

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        per_word, integers = WORD // self.bits, (torch.int32,)
        words = cut.units(cut.columns, per_word, "packed words")
        groups = cut.units(cut.columns, self.group, "groups") if self.group else whole(1)
        parts = [
            cut.tensor("weight_packed", cut.rows, words, dtypes=integers),
            cut.tensor("weight_scale", cut.rows, groups),
        ]
        if self.has_zeros:
            zeros = cut.units(cut.rows, per_word, "packed words")
            parts.append(cut.tensor("weight_zero_point", zeros, groups, dtypes=integers))
        if self.has_g_idx:
            cut.undivided("whose groups are of scattered columns (actorder)")
            parts.append(cut.tensor("weight_g_idx", cut.columns, dtypes=(torch.int32, torch.int64)))
        return parts

    def unpack(self, cut: Cut, tensors: Sequence[Tensor]) -> Codes:
        packed, scales, *rest = tensors
        rows, columns = cut.sizes
        groups = rest.pop() if self.has_g_idx else None
        zeros = unpack(rest[0].t(), self.bits)[:, :rows].t() if self.has_zeros else None
        return Codes(unpack(packed, self.bits)[:, :columns], scales, zeros, groups)


@dataclass(frozen=True)
class PackedInt8(Int8):
    """A Format: int8 per row, in words."""

    quantize_input: bool = False

    surplus: ClassVar[Sequence[str]] = PackedStorage.surplus

    def parts(self, cut: Cut) -> Sequence[TensorPart]:
        return _INT8_WORDS.parts(cut)

    def load(self, cut: Cut, tensors: Sequence[Tensor], dtype: torch.dtype) -> Int8Part:
        codes, scales, _, _ = _INT8_WORDS.unpack(cut, tensors)
        return Int8Part((codes ^ 128).view(torch.int8), scales.float().flatten())


_INT8_WORDS = PackedStorage(8, None, has_zeros=False, has_g_idx=False)


@dataclass(frozen=True)
class CompressedTensors:
    """Formats."""

    config: CompressedTensorsConfig

    name: ClassVar[str] = "compressed-tensors"

    def format_of(self, module: str, role: Role) -> Format[Any]:
        ignored = self.config.ignore or ()
        if role == "tied head" or any(_names(target, module) for target in ignored):
            return Unquantized()
        found = [
            (target == "Linear", target.startswith("re:"), group)
            for group in self.config.config_groups.values()
            for target in group.targets
            if _names(target, module)
        ]
        if not found:
            return Unquantized()
        closest = min(found, key=lambda entry: entry[:2])[2]
        return format_of_group(closest, self.config.format)


def format_of_group(group: Group, format_of_all: str) -> Format[Any]:
    """Raises StartupError for what is not supported."""
    weights, inputs = group.weights, group.input_activations
    if weights is None:
        return Unquantized()
    stored = group.format or format_of_all
    refusal = StartupError(
        f"compressed-tensors in the format {stored!r} with weights {weights}, inputs "
        f"{inputs or 'as they are'} is not supported; Tern reads int8 per tensor or channel with inputs as "
        "they are or dynamic int8 per token, float8, and packed int4 and int8 with inputs as they are"
    )
    if group.output_activations is not None or weights.dynamic:
        raise refusal
    if weights.type == "float" and weights.num_bits == 8 and weights.symmetric and stored in NAIVE:
        if inputs is not None and (inputs.type, inputs.num_bits) != ("float", 8):
            raise refusal
        block = weights.block_structure
        if weights.scope == "block" and isinstance(block, tuple):
            check_block(block)
            return FP8("weight_scale", block, quantize_input=inputs is not None)
        if weights.scope == "tensor":
            return FP8("weight_scale", "tensor", quantize_input=inputs is not None)
        if weights.scope == "channel":
            return FP8("weight_scale", "channel", quantize_input=inputs is not None)
        raise refusal
    if weights.type != "int":
        raise refusal
    if stored == "pack-quantized" and inputs is None and weights.scope in ("group", "channel"):
        size = weights.group_size if weights.scope == "group" else -1
        checked = check_group(size or 0, weights.num_bits, "packed weights")
        if weights.num_bits == 8 and checked is None and weights.symmetric:
            return PackedInt8()
        shuffled = weights.actorder in ("group", "dynamic", True)
        return Grouped(PackedStorage(weights.num_bits, checked, not weights.symmetric, shuffled))
    simple = weights.num_bits == 8 and weights.symmetric and weights.scope in ("tensor", "channel")
    if stored not in NAIVE or not simple:
        raise refusal
    if inputs is not None:
        as_we_do = inputs.type == "int" and inputs.num_bits == 8 and inputs.symmetric
        if not as_we_do or inputs.dynamic is not True or inputs.scope != "token":
            raise refusal
    return Int8(quantize_input=inputs is not None, per_row=weights.scope == "channel")


def _names(target: str, module: str) -> bool:
    """Whether a target of the configuration means this module, or the one of a text part (text_part.py)."""
    modules = module, f"language_model.{module}", f"model.language_model.{module.removeprefix('model.')}"
    if target.startswith("re:"):
        return any(re.match(target[3:], name) for name in modules)
    return target in ("Linear", *modules)
