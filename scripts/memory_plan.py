"""Whether a model can fit, from config.json and the headers of its weights, before anything is loaded.

Everything here is a lower bound: what it refuses cannot run, however the worker goes about it. The worker,
which knows the model's layers, counts exactly (worker/kv_cache.py) and fits the context to what is left.
"""

import os
import re
from math import prod
from typing import Any

import msgspec
from msgspec import Struct

from protocol.errors import OutOfMemory
from protocol.options import ModelOptions, ServeOptions
from worker.memory import set_aside

from .quantities import amount

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ROUNDED_BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 0.5, "nf4": 0.5}
STORED_BYTES = 4
"""Of a number in a checkpoint, at most."""
MAX_HEADER_BYTES = 100 << 20
_FLOAT = re.compile(r"F\d+|BF16|F8_E\d.*")


class Config(Struct, frozen=True):
    """What config.json says of sizes; 0: nothing, or not here."""

    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int | None = None
    hidden_size: int = 0
    head_dim: int | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None

    def dtype_bytes(self, asked: str) -> int:
        """Of a weight that is not quantized, and of a number in the KV cache."""
        name = (self.dtype or self.torch_dtype or "float32").removeprefix("torch.")
        return DTYPE_BYTES.get(name if asked == "auto" else asked, 1)

    def kv_bytes_per_token(self, asked: str) -> int:
        """At least; 0 for models whose layers differ."""
        heads = self.num_key_value_heads or self.num_attention_heads
        if self.sliding_window or self.layer_types or not (self.num_attention_heads and heads):
            return 0
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        return 2 * self.num_hidden_layers * heads * head_dim * self.dtype_bytes(asked)


class _Entry(Struct, frozen=True):
    dtype: str = ""
    shape: tuple[int, ...] = ()


def check(options: ServeOptions, available: int) -> None:
    """Raises OutOfMemory, with the numbers and the options that change them. What cannot be read here is left
    to the worker, which says what is wrong with it."""
    model = options.model
    config = _read_config(model.model)
    if options.parallel.worker == "stub" or model.load_format == "dummy" or config is None:
        return
    if config.text_config is not None:
        return  # only a part of it is loaded
    weights = weights_bytes(model, config)
    if weights > available:
        lighter = "" if model.quantization in ("int4", "nf4") else " --quantization int4 needs less;"
        raise OutOfMemory(
            f"the weights take at least {amount(weights)}, but {amount(available)} of memory are available",
            hint=f"{lighter} use a smaller model, or free memory".strip(),
        )
    _check_context(options, config, available - weights)


def weights_bytes(options: ModelOptions, config: Config) -> int:
    """Of memory, at least, once they are loaded."""
    dtype_bytes = config.dtype_bytes(options.dtype)
    total = 0.0
    for name, entry in _headers(options.model):
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        numbers = prod(entry.shape)
        if config.quantization_config is not None or not _FLOAT.fullmatch(entry.dtype):
            total += numbers * _stored_bytes(entry.dtype)
        elif options.quantization != "none" and len(entry.shape) > 1:
            total += numbers * min(ROUNDED_BYTES[options.quantization], dtype_bytes)
        else:
            total += numbers * dtype_bytes
    return int(total)


def most_download_bytes(options: ModelOptions, available: int) -> int:
    """Stored weights of more bytes than this cannot fit, whatever is done to them."""
    kept = float(DTYPE_BYTES.get(options.dtype, STORED_BYTES))
    if options.quantization != "none":
        kept = min(kept, ROUNDED_BYTES[options.quantization])
    return int(available * STORED_BYTES / kept)


def _check_context(options: ServeOptions, config: Config, left: int) -> None:
    """A context that is fixed must fit once. Otherwise the worker fits it."""
    cache, wanted = options.cache, options.model.max_model_len
    per_token = config.kv_bytes_per_token(options.model.dtype)
    if not wanted or not per_token or options.parallel.tensor_parallel_size > 1 or cache.num_kv_blocks:
        return
    memory = cache.kv_cache_memory or set_aside(left)
    blocks = -(-wanted // cache.block_size)
    needed = blocks * cache.block_size * per_token
    if needed > memory:
        fits = memory // (cache.block_size * per_token) * cache.block_size
        source = "--kv-cache-memory is" if cache.kv_cache_memory else f"of {amount(left)} beside the weights,"
        kept = f"{source} {amount(memory)}" + ("" if cache.kv_cache_memory else " are set aside")
        raise OutOfMemory(
            f"one sequence of --max-model-len {wanted} needs {amount(needed)} of KV, but {kept}",
            hint=f"--max-model-len {fits} would fit, or give --kv-cache-memory {needed}",
        )


def _read_config(folder: str) -> Config | None:
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            return msgspec.json.decode(file.read(), type=Config)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _headers(folder: str) -> list[tuple[str, _Entry]]:
    """Of all tensors in the folder's safetensors files; none of a file that cannot be read."""
    index = os.path.join(folder, "model.safetensors.index.json")
    names = {"model.safetensors"}
    found: list[tuple[str, _Entry]] = []
    try:
        if os.path.exists(index):
            with open(index, "rb") as file:
                names = set(msgspec.json.decode(file.read(), type=_Index).weight_map.values())
        for name in sorted(names):
            with open(os.path.join(folder, os.path.basename(name)), "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > MAX_HEADER_BYTES:
                    return []
                entries = msgspec.json.decode(file.read(length), type=dict[str, _Entry])
                found += [(key, entry) for key, entry in entries.items() if key != "__metadata__"]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return []
    return found


class _Index(Struct, frozen=True):
    weight_map: dict[str, str]


def _stored_bytes(dtype: str) -> float:
    """Of one number, by the name of its type in a safetensors header: BF16, I32, F8_E4M3, …"""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1.0
