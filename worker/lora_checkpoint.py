"""A LoRA adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors. Knows no model.

    base_model.model.<module>.lora_A.weight  [rank, columns of the module]
    base_model.model.<module>.lora_B.weight  [rows of the module, rank]       W + scale · B A

What would change the answer and is not computed here is refused by name, before any weight is read.
"""

import re
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from torch import Tensor

from protocol.errors import StartupError

from .checkpoint import StoredTensor, TensorPart, Tensors, read_header
from .weights import Wants, names_of

MOST_RANK = 512
_MOST_CONFIG_BYTES = 1 << 20
_PREFIX = "base_model.model."
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")
_MERGE = "merge it into the model (PEFT's merge_and_unload), and serve that"
_REFUSED = {
    "use_dora": _MERGE,
    "modules_to_save": _MERGE,
    "trainable_token_indices": _MERGE,
    "target_parameters": _MERGE,
    "layer_replication": _MERGE,
    "lora_bias": _MERGE,
    "use_qalora": _MERGE,
    "alora_invocation_tokens": "train a LoRA that is there for all tokens",
}
"""Keys of adapter_config.json that change what is computed, and what to do instead."""
_CHANGED_AT_BIRTH = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""`init_lora_weights` that change the model's own weights, too."""
_WITHOUT_EFFECT = {
    "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Keys that are read here, that say which modules there are (the tensors do, too), or that training needs."""


class _Config(msgspec.Struct, kw_only=True):
    peft_type: str = ""
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


class Pair(NamedTuple):
    """What an adapter has for one module."""

    a: str
    """Names of tensors."""
    b: str
    rank: int
    scale: float


class LoraCheckpoint:
    """One adapter. Headers are read and checked at once, data when asked for."""

    def __init__(self, name: str, folder: Path, wants: Wants) -> None:
        """Raises StartupError. Modules have the names that the model of `wants` gives them."""
        self.name = name
        config = self._config(folder / "adapter_config.json")
        stored = dict(read_header(folder / "adapter_model.safetensors"))
        for tensor in stored:
            if not tensor.startswith(_PREFIX) or _NAME.fullmatch(tensor) is None:
                raise self.refused(f"{tensor!r} is neither the A nor the B of a linear layer's LoRA", _MERGE)
        named = {name[len(_PREFIX) :]: one for name, one in stored.items()}
        self._source = wants.view(Tensors(named, may_map=False))
        self.stored: dict[str, StoredTensor] = {}
        """By name in the model."""
        found: dict[str, dict[str, str]] = {}
        self._own = names_of(wants, self._source)
        for tensor, own in self._own.items():
            self.stored[tensor] = self._source.tensors[own]
            match = _NAME.fullmatch(tensor)
            assert match is not None
            found.setdefault(match["module"], {})[match["which"]] = tensor
        self.pairs: dict[str, Pair] = {}
        """By module."""
        for module, names in found.items():
            if len(names) < 2:
                lacking = "BA"["B" in names]
                raise self.refused(f"{module!r} has no lora_{lacking}", "save the adapter again")
            self.pairs[module] = self._pair(config, module, names["A"], names["B"])
        if not self.pairs:
            raise self.refused("it has no tensors", "save the adapter again")

    def read(self, part: TensorPart) -> Tensor:
        """As Checkpoint.read, of a tensor of one of the pairs."""
        return self._source.read(part._replace(name=self._own[part.name]))

    def refused(self, what: str, remedy: str) -> StartupError:
        """An error that names the adapter."""
        return StartupError(f"--lora {self.name}: {what}", hint=remedy)

    def _config(self, path: Path) -> _Config:
        try:
            with path.open("rb") as file:
                document = file.read(_MOST_CONFIG_BYTES)
            known = msgspec.json.decode(document, type=_Config)
            keys = msgspec.json.decode(document, type=dict[str, Any])
        except OSError as error:
            raise self.refused(f"{path.name} cannot be read: {error.strerror}", "check the folder") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self.refused(f"{path.name} is malformed: {error}", "save the adapter again") from None
        if known.peft_type.upper() != "LORA":
            raise self.refused(f"peft_type = {known.peft_type!r}; only LORA is supported", _MERGE)
        if known.bias != "none":
            raise self.refused(f"bias = {known.bias!r} is not supported; it must be 'none'", _MERGE)
        if str(known.init_lora_weights).startswith(_CHANGED_AT_BIRTH):
            raise self.refused(
                f"init_lora_weights = {known.init_lora_weights!r} has changed the model itself, too",
                "save it with path_initial_model_for_weight_conversion, which makes it an ordinary LoRA",
            )
        for key, value in keys.items():
            if value and key not in _WITHOUT_EFFECT:
                raise self.refused(f"{key} = {value!r} is not supported", _REFUSED.get(key, _MERGE))
        return known

    def _pair(self, config: _Config, module: str, a: str, b: str) -> Pair:
        shape = self.stored[a].shape
        rank = shape[0] if len(shape) == 2 else 0
        if not 0 < rank <= MOST_RANK:
            rule = f"it must be [rank, columns], with a rank of {MOST_RANK} at most"
            raise self.refused(f"{a!r} has the shape {list(shape)}; {rule}", _MERGE)
        expected = self._of(config.rank_pattern, module, config.r)
        if rank != expected:
            raise self.refused(
                f"{a!r} has the rank {rank}; adapter_config.json says {expected:g}", "save the adapter again"
            )
        alpha = self._of(config.alpha_pattern, module, config.lora_alpha)
        return Pair(a, b, rank, alpha / (sqrt(rank) if config.use_rslora else rank))

    def _of(self, pattern: dict[str, int] | dict[str, float] | None, module: str, default: float) -> float:
        """As PEFT finds it: the first expression that is the end of the module's name."""
        for expression, value in (pattern or {}).items():
            try:
                if re.match(rf"(.*\.)?({expression})$", module):
                    return value
            except re.error as error:
                raise self.refused(f"{expression!r} is no expression: {error}", "correct it") from None
        return default
