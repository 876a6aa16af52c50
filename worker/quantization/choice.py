"""Which Formats a model is served with: from `quantization_config` of its config.json, and --quantization."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from protocol.errors import StartupError
from protocol.options import ModelOptions

from ..checkpoint import StoredTensor
from .auto_round import AutoRoundConfig
from .awq import AWQ, AWQConfig
from .cache import Cache, CachedRounding
from .compressed_tensors import CompressedTensors, CompressedTensorsConfig
from .format import Formats
from .fp8 import FbgemmConfig, FP8Checkpoint, FP8Config, ModelOptConfig
from .gptq import GPTQ, GPTQConfig
from .rounding import INT4_GROUP, Rounding
from .unquantized import Unquantized

Stored = Mapping[str, StoredTensor]
Config = TypeVar("Config")


class Method(NamedTuple):
    """One `quant_method`: its Struct of `quantization_config`, whose `check()` raises, and its Formats."""

    config_type: type[Any]
    formats: Callable[[Any, Stored], Formats]


METHODS = {
    "compressed-tensors": Method(CompressedTensorsConfig, lambda config, _: CompressedTensors(config)),
    "fp8": Method(FP8Config, FP8Checkpoint),
    "fbgemm_fp8": Method(FbgemmConfig, lambda _, stored: FP8Checkpoint(FP8Config(), stored, "channel")),
    "modelopt": Method(ModelOptConfig, lambda _, stored: FP8Checkpoint(FP8Config(), stored)),
    "gptq": Method(GPTQConfig, lambda config, stored: GPTQ(config, stored.keys())),
    "awq": Method(AWQConfig, lambda config, stored: AWQ(config, stored.keys())),
    "auto-round": Method(AutoRoundConfig, lambda config, stored: _auto_round(config, stored)),
}


_REMEDY = "use an unquantized checkpoint with --quantization"


def _auto_round(config: AutoRoundConfig, stored: Stored) -> Formats:
    match config.stored_as:
        case GPTQConfig() as gptq:
            return GPTQ(gptq, stored.keys())
        case AWQConfig() as awq:
            return AWQ(awq, stored.keys())


def formats_for(
    found: Mapping[str, Any] | None,
    stored: Stored,
    options: ModelOptions,
    cache: Callable[[str], Cache],
) -> Formats:
    """`found` is the checkpoint's quantization_config; `cache` opens that of one way of rounding.

    Raises StartupError naming what is not supported.
    """
    if options.quantization_cache and options.quantization == "none":
        raise StartupError(
            "--quantization-cache keeps what --quantization rounds, and that is none",
            hint="give --quantization a scheme, or leave the cache out",
        )
    if options.quantization_group != INT4_GROUP and options.quantization != "int4":
        raise StartupError(
            f"--quantization-group {options.quantization_group} is of --quantization int4, and that is "
            f"{options.quantization}",
            hint="leave it out, or use --quantization int4",
        )
    if not found:
        if options.quantization == "none":
            return Unquantized()
        rounding = Rounding(options.quantization, options.quantize_head, options.quantization_group)
        return CachedRounding(rounding, cache(rounding.name)) if options.quantization_cache else rounding
    name = str(found.get("quant_method", "unnamed"))
    method = METHODS.get(name)
    if method is None:
        raise StartupError(
            f"the checkpoint is quantized by {name!r}, which is not supported; it must be one of "
            f"{', '.join(METHODS)}",
            hint=_REMEDY,
        )
    if options.quantization != "none":
        raise StartupError(
            f"--quantization {options.quantization}: the checkpoint is quantized already ({name})",
            hint="leave --quantization out, or use an unquantized checkpoint",
        )
    if options.load_format == "dummy":
        raise StartupError(
            f"--load-format dummy makes unquantized weights, but the checkpoint is quantized ({name})",
            hint="use --quantization with a config.json that has no quantization_config",
        )
    try:
        config = msgspec.convert(found, method.config_type)
    except msgspec.ValidationError as error:
        raise StartupError(f"quantization_config ({name}): {error}") from None
    try:
        config.check()
    except StartupError as error:
        raise StartupError(error.message, hint=error.hint or _REMEDY) from None
    if found.get("kv_cache_scheme"):
        message = (
            "the checkpoint's scales of an 8-bit KV cache are not used: --kv-cache-dtype says how it is kept"
        )
        print(f"tern: {message}", file=sys.stderr, flush=True)
    return method.formats(config, stored)
