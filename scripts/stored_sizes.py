"""The memory that a checkpoint's weights will take, from config.json and the headers of its tensors.

Without torch, so that the supervisor can ask before any process starts. It follows what the models declare
(worker/models, worker/quantization): buffers, causal masks and the parts that see pictures are loaded by
nobody; a tied head is the embedding; `--quantization` rounds matrices, but neither embeddings nor routers.
Where a checkpoint leaves room for doubt the smaller number is taken: all sizes are lower bounds.
"""

import os
import re
from math import prod
from typing import Any

import msgspec
from msgspec import Struct

from protocol.adapters import adapter_folders
from protocol.options import ModelOptions
from worker.memory import kv_vector_bytes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALE_BYTES = 4
MAX_HEADER_BYTES = 100 << 20

_FLOAT = re.compile(r"F\d+|BF16|F8_E\d.*")
_PICTURES = re.compile(
    r"^(\w+\.){0,2}(vision_\w+|visual|multi_modal_projector|image_newline|audio_\w+|embed_(vision|audio))\b"
)
_NOT_LOADED = re.compile(
    r"rotary_emb\.inv_freq$|\bh\.\d+\.attn\.(masked_)?bias$|\.(weight_shape|input_scale)$"
)
_ZEROS = re.compile(r"\.(qzeros|weight_zero_point|g_idx|weight_g_idx|bias)$")
"""Kept in another form, or not at all where they say nothing."""
_LAYER = re.compile(r"\b(?:layers|h)\.(\d+)\.")
_EMBEDDING = re.compile(r"\b(embed_tokens|wte|wpe)\.weight$")
_ROUTER = re.compile(r"\.gate\.weight$")
_HEAD = "lm_head.weight"


class Config(Struct, frozen=True):
    """What config.json says of sizes; 0: nothing, or not here."""

    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int | None = None
    hidden_size: int = 0
    head_dim: int | None = None
    max_position_embeddings: int = 0
    dtype: str | None = None
    torch_dtype: str | None = None
    tie_word_embeddings: bool | None = None
    """None: as its family has it."""
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None

    def dtype_bytes(self, asked: str) -> int:
        """Of a weight that is not quantized, and of a number in the KV cache."""
        name = (self.dtype or self.torch_dtype or "float16").removeprefix("torch.")  # as stored: at least
        return DTYPE_BYTES.get(name if asked == "auto" else asked, 1)

    def kv_bytes_per_token(self, asked: str, kv_cache_dtype: str) -> int:
        """At least; 0 for models whose layers differ."""
        heads = self.num_key_value_heads or self.num_attention_heads
        if self.sliding_window or self.layer_types or not (self.num_attention_heads and heads):
            return 0
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        vector = kv_vector_bytes(head_dim, self.dtype_bytes(asked), kv_cache_dtype)
        return 2 * self.num_hidden_layers * heads * vector


class _Wrapped(Struct, frozen=True):
    """Of a model that can also see."""

    text_config: msgspec.Raw = msgspec.Raw()
    dtype: str | None = None
    torch_dtype: str | None = None


class _Entry(Struct, frozen=True):
    dtype: str = ""
    shape: tuple[int, ...] = ()


class _Index(Struct, frozen=True):
    weight_map: dict[str, str]


def read_config(folder: str) -> Config | None:
    """Of the text part, where there are others; None: it cannot be read."""
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            document = file.read()
        whole = msgspec.json.decode(document, type=_Wrapped)
        if bytes(whole.text_config) in (b"", b"null"):
            return msgspec.json.decode(document, type=Config)
        text = msgspec.json.decode(whole.text_config, type=Config)
        return msgspec.structs.replace(
            text, dtype=text.dtype or whole.dtype, torch_dtype=text.torch_dtype or whole.torch_dtype
        )
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def weights_bytes(options: ModelOptions, config: Config) -> int:
    """Of memory, at least; adapters with them."""
    total = float(_adapters_bytes(options, config))
    for name, entry in _headers(options.model):
        if _is_loaded(name, config):
            total += _kept_bytes(name, entry, options, config)
            if _EMBEDDING.search(name) and "wpe" not in name and config.tie_word_embeddings:
                total += _rounded_head_bytes(entry, options)
    return int(total)


def _adapters_bytes(options: ModelOptions, config: Config) -> int:
    numbers = sum(
        prod(entry.shape)
        for folder in adapter_folders(options.lora).values()
        for _, entry in _headers_of(os.path.join(folder, "adapter_model.safetensors"))
    )
    return numbers * config.dtype_bytes(options.dtype)


def rounded_bytes(options: ModelOptions) -> float:
    """Of a number in a rounded matrix, with the scale of its group (worker/quantization/rounding.py)."""
    match options.quantization:
        case "int4":
            return 0.5 + 2 / options.quantization_group
        case "nf4":
            return 0.5 + 4 / 64
        case _:
            return 1.0


def _is_loaded(name: str, config: Config) -> bool:
    if _NOT_LOADED.search(name) or _PICTURES.search(name):
        return False
    layer = _LAYER.search(name)
    if layer is not None and config.num_hidden_layers and int(layer[1]) >= config.num_hidden_layers:
        return False  # layers that draft tokens, which some checkpoints have behind their last one
    return config.tie_word_embeddings is False or not name.endswith(_HEAD)


def _kept_bytes(name: str, entry: _Entry, options: ModelOptions, config: Config) -> float:
    numbers, dtype_bytes = prod(entry.shape), config.dtype_bytes(options.dtype)
    if config.quantization_config is not None:
        if _ZEROS.search(name):
            return 0.0
        if "scale" in name.rpartition(".")[2]:
            return numbers * SCALE_BYTES
        is_packed = not _FLOAT.fullmatch(entry.dtype) or entry.dtype.startswith("F8")
        return numbers * (_stored_bytes(entry.dtype) if is_packed else dtype_bytes)
    as_it_is = len(entry.shape) < 2 or _EMBEDDING.search(name) or _ROUTER.search(name)
    if options.quantization == "none" or as_it_is:
        return numbers * dtype_bytes
    if name.endswith(_HEAD):
        return numbers * (1 if options.quantize_head else dtype_bytes)
    return numbers * rounded_bytes(options)


def _rounded_head_bytes(embedding: _Entry, options: ModelOptions) -> int:
    """A tied head is rounded beside the embedding, which stays as it is."""
    return prod(embedding.shape) if options.quantization != "none" and options.quantize_head else 0


def _headers(folder: str) -> list[tuple[str, _Entry]]:
    """Of all tensors in the folder's safetensors files; none of a file that cannot be read."""
    index = os.path.join(folder, "model.safetensors.index.json")
    names = {"model.safetensors"}
    found: list[tuple[str, _Entry]] = []
    try:
        if os.path.exists(index):
            with open(index, "rb") as file:
                names = set(msgspec.json.decode(file.read(), type=_Index).weight_map.values())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return []
    for name in sorted(names):
        found += _headers_of(os.path.join(folder, os.path.basename(name)))
    return found


def _headers_of(path: str) -> list[tuple[str, _Entry]]:
    """Of the tensors in a safetensors file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                return []
            entries = msgspec.json.decode(file.read(length), type=dict[str, _Entry])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return []
    return [(key, entry) for key, entry in entries.items() if key != "__metadata__"]


def _stored_bytes(dtype: str) -> float:
    """Of one number, by the name of its type in a safetensors header: BF16, I32, F8_E4M3, …"""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1.0
