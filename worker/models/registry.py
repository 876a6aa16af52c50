"""The table of model families: what `architectures` of a config.json means to us."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from msgspec import Struct, structs
from torch import Tensor

from protocol.errors import StartupError
from protocol.options import ModelOptions

from ..checkpoint import FLOATS, Checkpoint, StoredTensor
from ..kernels.attention import StepMetadata
from ..kernels.cpu.library import Library
from ..kernels.device import DeviceKernels
from ..kernels.paged_kv import PagedKV
from ..kv_layout import Window
from ..parallel import Group
from ..quantization.cache import Cache
from ..quantization.choice import formats_for
from ..weight_image import WeightImage
from ..weights import Wants
from .gemma3 import Gemma3Config, build_gemma3
from .gpt2 import GPT2, GPT2Config
from .llama import LlamaConfig, build_llama
from .mistral import MistralConfig, build_mistral
from .mixtral import MixtralConfig, build_mixtral
from .own_code import check_own_code
from .phi3 import Phi3Config, build_phi3
from .qwen2 import Qwen2Config, build_qwen2
from .qwen3 import Qwen3Config, build_qwen3
from .qwen3_moe import Qwen3MoeConfig, build_qwen3_moe
from .text_part import WRAPPERS, TextPart, Wrapper, text_config


class Model(Protocol):
    """One rank's part of a model. Built with empty weights, which it has declared in `wants`."""

    vocab_size: int
    num_layers: int
    num_kv_heads: int
    """Of this rank."""
    head_dim: int
    max_len: int
    """Positions that the model itself allows."""
    windows: tuple[Window, ...]
    """Of each layer."""
    hidden_size: int

    def cover(self, max_len: int) -> None:
        """Make ready for positions 0 … max_len - 1."""

    def __call__(
        self, token_ids: Tensor, positions: Tensor, caches: list[PagedKV], metadata: StepMetadata
    ) -> Tensor:
        """int64[tokens] twice → hidden states [tokens, hidden]; writes the tokens' KV into the caches."""

    def states(self, x: Tensor) -> Tensor:
        """Hidden states [n, hidden] → what the output head and embeddings are made from: normed."""

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states [n, hidden] → float32 [n, vocab_size], the same on every rank."""


class Family(NamedTuple):
    """Its Struct of config.json, whose `check()` raises StartupError, and its constructor."""

    config_type: type[Any]
    build: Callable[[Any, Wants, Group], Model]


MODELS = {
    "GPT2LMHeadModel": Family(GPT2Config, GPT2),
    "Gemma3ForCausalLM": Family(Gemma3Config, build_gemma3),
    "LlamaForCausalLM": Family(LlamaConfig, build_llama),
    "MistralForCausalLM": Family(MistralConfig, build_mistral),
    "MixtralForCausalLM": Family(MixtralConfig, build_mixtral),
    "Phi3ForCausalLM": Family(Phi3Config, build_phi3),
    "Qwen2ForCausalLM": Family(Qwen2Config, build_qwen2),
    "Qwen3ForCausalLM": Family(Qwen3Config, build_qwen3),
    "Qwen3MoeForCausalLM": Family(Qwen3MoeConfig, build_qwen3_moe),
}


class _TextHeader(Struct, frozen=True):
    """Of the text part of a model that can also see."""

    model_type: str = ""
    dtype: str | None = None
    torch_dtype: str | None = None


class _Header(Struct, frozen=True):
    """What config.json says about any model."""

    architectures: tuple[str, ...] = ()
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None
    auto_map: dict[str, object] | None = None
    model_type: str = ""
    is_causal: bool = True
    text_config: _TextHeader | None = None

    @property
    def wrapper(self) -> Wrapper | None:
        """If a declared family computes the text part."""
        found = next((WRAPPERS[name] for name in self.architectures if name in WRAPPERS), None)
        text = self.text_config
        return found if found and (text is None or text.model_type in ("", found.model_type)) else None

    def stored_dtype(self, stored: Mapping[str, StoredTensor]) -> str:
        """As config.json says, or else as most tensors are that are not quantized."""
        text = self.text_config or _TextHeader()
        found = self.dtype or self.torch_dtype or text.dtype or text.torch_dtype
        if not found:
            floats = Counter(tensor.dtype for tensor in stored.values() if tensor.dtype in FLOATS)
            found = str(max(floats, key=floats.__getitem__, default=torch.float32))
        return found.removeprefix("torch.")


_HEAD = "lm_head.weight"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _family(architecture: str) -> Family | None:
    """Checkpoints that make embeddings often name the bare model."""
    bare = architecture.removesuffix("Model")
    names = (architecture, f"{bare}ForCausalLM", f"{bare}LMHeadModel")
    return next((MODELS[name] for name in names if name in MODELS), None)


def build(
    checkpoint: Checkpoint,
    options: ModelOptions,
    group: Group,
    kernels: Library | None = None,
    device: DeviceKernels | None = None,
    image: WeightImage | None = None,
) -> tuple[Model, Wants]:
    """The model with its weights still to be loaded. Raises StartupError naming what is not supported."""
    header = checkpoint.config(_Header)
    if header.auto_map:
        check_own_code(header.auto_map, header.architectures, header.model_type)
    if not header.is_causal:
        raise StartupError(
            "is_causal = False: its attention looks in both directions, which is not supported"
        )
    wrapper = header.wrapper
    named = header.architectures if wrapper is None else (wrapper.family,)
    kind = next(filter(None, map(_family, named)), None)
    in_transformers = options.model_impl == "transformers" or (kind is None and options.model_impl == "auto")
    if in_transformers and device is not None:
        raise StartupError(
            "a model in transformers' own code is served on the CPU only", hint="use --device cpu"
        )
    if in_transformers:
        return _build_in_transformers(checkpoint, header, options, group, kernels, image)
    if kind is None:
        raise StartupError(
            f"architectures {list(header.architectures)} are not declared; Tern declares {', '.join(MODELS)}",
            hint="use --model-impl transformers, or auto",
        )
    dtype = resolve_dtype(options.dtype, header, checkpoint.tensors)
    stored = checkpoint.tensors if wrapper is None else TextPart(checkpoint).tensors
    formats = formats_for(
        header.quantization_config, stored, options, _cache_of(checkpoint, dtype, options, group)
    )
    wants = Wants(dtype, formats, kernels=kernels, device=device, image=image)
    if wrapper is None:
        config = checkpoint.config(kind.config_type)
    else:
        wants.view, config = TextPart, text_config(checkpoint, kind.config_type)
    config.check()
    if not config.tie_word_embeddings and stored and _HEAD not in stored:
        wants.headless, config = True, structs.replace(config, tie_word_embeddings=True)
    return kind.build(config, wants, group), wants


def _build_in_transformers(
    checkpoint: Checkpoint,
    header: _Header,
    options: ModelOptions,
    group: Group,
    kernels: Library | None,
    image: WeightImage | None,
) -> tuple[Model, Wants]:
    if group.size > 1:
        raise StartupError(
            "a model in transformers' own code cannot be spread over several workers",
            hint="use --tensor-parallel-size 1",
        )
    if options.lora:
        raise StartupError(
            "a model in transformers' own code is served without adapters",
            hint="leave --lora out, or merge the adapter into the model and serve that",
        )
    from .transformers_model import build_transformers  # only now: it takes seconds to import

    dtype = resolve_dtype(options.dtype, header, checkpoint.tensors)
    formats = formats_for(
        header.quantization_config, checkpoint.tensors, options, _cache_of(checkpoint, dtype, options, group)
    )
    wants = Wants(dtype, formats, kernels=kernels, image=image)
    return build_transformers(checkpoint, wants), wants


def _cache_of(
    checkpoint: Checkpoint, dtype: torch.dtype, options: ModelOptions, group: Group
) -> Callable[[str], Cache]:
    """Opens the file of what was rounded in one way."""

    def cache(scheme: str) -> Cache:
        fingerprint = checkpoint.fingerprint(str(dtype), options.load_format, scheme)
        files = {stored.path for stored in checkpoint.tensors.values()}
        return Cache(Path(options.quantization_cache).expanduser(), fingerprint, files, group)

    return cache


def resolve_dtype(asked: str, header: _Header, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """--dtype, or the checkpoint's own."""
    name = asked
    if asked == "auto":
        name = header.stored_dtype(stored)
    if name not in _DTYPES:
        raise StartupError(
            f"the checkpoint's dtype is {name!r}; Tern computes in {', '.join(_DTYPES)}",
            hint="choose one with --dtype",
        )
    return _DTYPES[name]
