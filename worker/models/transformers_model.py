"""TransformersModel: a decoder that Tern does not declare, computed by transformers' own modelling code.

Only attention is ours (transformers_attention.py), so no cache object and no mask of transformers is in
use; a step's flat tokens are a batch of one, with their positions.

    config.json → model without memory → trace → memory → weights → its own forward compared with ours
                                           └ what each layer's attention asks for; the rest is refused

What decides is how the code behaves, not a list of names. The trace refuses, before weights are read,
whatever our attention would not honour; the comparison catches what a trace cannot see, such as positions
that are ignored. A checkpoint's own code is never run.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from protocol.errors import StartupError

from ..checkpoint import Checkpoint
from ..kernels.attention import StepMetadata
from ..kernels.paged_kv import PagedKV
from ..weights import Wants
from .transformers_attention import ATTENTION, TRACE, LayerSpec, Step, Trace, attending
from .transformers_check import compare, logits_in_company, probes
from .transformers_experts import EXPERTS, Experts
from .transformers_linear import Linears, kept_in_float32, name_others
from .transformers_norm import replace_norms
from .transformers_weights import ConvertedCheckpoint

_TRACED_TOKENS = 5
_FOLLOW_POSITIONS = ("dynamic", "longrope")
"""Kinds of rotation whose code changes the frequencies while it runs."""


@dataclass
class _Output(BaseModelOutput):
    """What heads and wrappers pass on of it (router logits, features of pictures) is there, and None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands where the decoder was: hidden states in, the same out."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _Output(last_hidden_state=inputs_embeds)


class TransformersModel:
    """A Model, see registry.py."""

    def __init__(self, kind: Any, config: Any, wants: Wants) -> None:
        """`kind`: the class in transformers. Raises StartupError."""
        name = type(config).__name__.removesuffix("Config")
        text = config.get_text_config(decoder=True)
        self._head: Any = None
        try:
            self._head = _without_memory(kind, config, wants.dtype)
            self._longropes = _pin(self._head)
            self._decoder: Any = _decoder_of(self._head)
            self._body = self._decoder if text is config else self._head.base_model
            linears, experts = Linears(self._head), Experts(self._head)
            self._layers, used = _trace(self._head, self._decoder, text)
            self.num_kv_heads, self.head_dim = _common_shape(self._layers)
            taken = linears.take(self._head, used, wants) | experts.take(self._head, used, wants)
            if wants.formats.name != "none":
                name_others(self._head, used, taken, wants.formats.name)
            _take_memory(self._head, used, taken, wants)
            self._ours = linears, experts
            self.hidden_size: int = self._head.get_output_embeddings().weight.shape[1]
        except StartupError as error:
            raise StartupError(f"{name}: {error.message}", hint=error.hint) from error
        except ImportError as error:
            message = f"{name}: its code in transformers needs packages that are not installed"
            raise StartupError(f"{message} ({one_line(error)})") from error
        except Exception as error:
            why = "its code in transformers cannot be run with our attention"
            if isinstance(error, IndexError):
                why = (
                    "its code in transformers does more with an attention mask than attend (sparse attention)"
                )
            if not getattr(kind, "_supports_attention_backend", False):
                why = "its code in transformers does not use the attention interface, which ours needs"
            raise StartupError(f"{name}: {why} ({one_line(error)})") from error
        self._exact = wants.dtype == torch.float32 and wants.formats.name == "none"
        self._dtype, self._kernels = wants.dtype, wants.kernels
        self.vocab_size: int = text.vocab_size
        self.max_len: int = text.max_position_embeddings
        self.num_layers = len(self._layers)
        self.windows = tuple(layer.window for layer in self._layers)
        wants.view = partial(ConvertedCheckpoint, self._head, experts.stacks)
        wants.scope().after_loading(self._finish)

    def cover(self, max_len: int) -> None:
        """Longrope has two sets of frequencies; one of them serves all sequences, as in layers/rotary.py."""
        for rotary in self._longropes:
            original = rotary.config.rope_parameters["original_max_position_embeddings"]
            longest = max(original, min(max_len, original + 1))
            rotary.inv_freq.copy_(ROPE_INIT_FUNCTIONS["longrope"](rotary.config, seq_len=longest)[0])

    def __call__(
        self, token_ids: Tensor, positions: Tensor, caches: list[PagedKV], metadata: StepMetadata
    ) -> Tensor:
        with attending(Step(self._layers, caches, metadata)):
            output = self._decoder(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
        x: Tensor = output[0][0]
        return x

    def states(self, x: Tensor) -> Tensor:
        return x  # normed by the decoder

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self._head(inputs_embeds=x[None], use_cache=False).logits[0]
        return logits.float()

    def _finish(self) -> None:
        """Raises StartupError."""
        for layers in self._ours:
            layers.loaded()
        try:
            self._part()
        except Exception as error:
            message = error.message if isinstance(error, StartupError) else one_line(error)
            raise StartupError(f"{type(self._head).__name__} cannot be served: {message}") from error

    @torch.inference_mode()
    def _part(self) -> None:
        """Weights are there: part the decoder from the head, whose own code scales and caps logits.

        Raises StartupError when the parts do not compute what the whole does.
        """
        head, sequences = self._head, probes(self.vocab_size)
        head.config._attn_implementation = "eager"
        expected = [head(input_ids=ids[None], use_cache=False).logits[0].float() for ids in sequences]
        head.config._attn_implementation = ATTENTION
        if self._kernels is not None:
            replace_norms(self._decoder, self._kernels)
        path = next(path for path, module in head.named_modules() if module is self._body)
        head.set_submodule(path, _Given())
        ours = logits_in_company(
            lambda *step: self.logits(self(*step)),
            sequences,
            (self.num_kv_heads, self.head_dim),
            self.windows,
            self._dtype,
        )
        compare(expected, ours, exact=self._exact)


def build_transformers(checkpoint: Checkpoint, wants: Wants) -> TransformersModel:
    """Raises StartupError for what cannot be right."""
    quieten: Any = logging.set_verbosity_error
    quieten()
    raw = checkpoint.config(dict[str, Any])
    model_type = str(raw.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise StartupError(
            f"model_type {model_type!r} is not one that transformers {transformers.__version__} has code for"
        )
    try:
        kind: Any = CONFIG_MAPPING[model_type]
        config = kind.from_dict(kind._decode_special_floats(raw))
    except Exception as error:  # its own validation
        raise StartupError(f"config.json is refused by transformers: {one_line(error)}") from error
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise StartupError(f"model_type {model_type!r} has an encoder, which is not supported")
    return TransformersModel(_class_of(config), config, wants)


def _class_of(config: Any) -> Any:
    """In transformers: of a text decoder, or of a model around one, whose text part is served."""
    mappings: list[Any] = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING]
    if config.get_text_config(decoder=True) is config:
        mappings.insert(0, MODEL_FOR_CAUSAL_LM_MAPPING)
    kinds = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    if not kinds:
        raise StartupError(f"model_type {config.model_type!r} is not a model that writes text")
    known, named = kinds[0].__name__, config.architectures or []
    own = config.model_type.replace("_", "").replace("-", "")
    if named and not any(name == known or _is_own_name(name, own) for name in named):
        raise StartupError(
            f"architectures {named} are not supported; transformers' own for {config.model_type!r} is {known}"
        )
    return kinds[0]


def _is_own_name(architecture: str, model_type: str) -> bool:
    """As PhiMoEForCausalLM is of phimoe, though transformers calls its class otherwise."""
    return architecture.lower() == f"{model_type}forcausallm" and not hasattr(transformers, architecture)


# ── building ────────────────────────────────────────────────────────────────────────────────────────


def _without_memory(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    config._attn_implementation = TRACE
    config._experts_implementation = EXPERTS
    with ExitStack() as stack:
        for context in kind.get_init_context(dtype, False, False, False):
            stack.enter_context(context)
        return kind(config).eval().requires_grad_(False)


def _decoder_of(head: Any) -> Any:
    """ModernBERT's own answer is its output head."""
    found = head.get_decoder()
    return head.base_model if found is head.get_output_embeddings() else found


@torch.no_grad()
def _trace(head: Any, decoder: Any, text: Any) -> tuple[list[LayerSpec], set[nn.Module]]:
    """What its layers ask for, and the modules that text goes through. Raises StartupError, and whatever the
    model's code raises."""
    convolution = next((name for name, part in decoder.named_modules() if isinstance(part, nn.Conv1d)), None)
    if convolution is not None:
        raise StartupError(f"{convolution!r} mixes neighbouring tokens, which is not supported")
    trace, shape = Trace(), (1, _TRACED_TOKENS)
    ids = torch.zeros(shape, dtype=torch.int64, device="meta")
    mask = torch.ones(shape, dtype=torch.int64, device="cpu")  # some ask whether all is seen
    used = {*decoder.modules(), *head.get_output_embeddings().modules()}
    with attending(trace), ExitStack() as hooks:
        for module in head.modules():
            handle = module.register_forward_pre_hook(lambda module, _: used.update((module,)))
            hooks.callback(handle.remove)
        logits: Tensor = head(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False).logits
    if logits.shape != (*shape, text.vocab_size):
        raise StartupError(f"its logits have the shape {list(logits.shape)}; vocab_size is {text.vocab_size}")
    if len(trace.layers) != text.num_hidden_layers:
        raise StartupError(
            f"it has {text.num_hidden_layers} layers and attends {len(trace.layers)} times: layers that "
            "attend otherwise (linear, recurrent, several times, by code of their own) are not supported"
        )
    if getattr(text, "max_position_embeddings", None) is None:
        raise StartupError("config.json gives no max_position_embeddings")
    return trace.layers, used


def _common_shape(layers: list[LayerSpec]) -> tuple[int, int]:
    """(KV heads, head_dim) of caches that fit all layers. Raises StartupError."""
    heads = max(layer.num_kv_heads for layer in layers)
    for layer in layers:
        if heads % layer.num_kv_heads or layer.num_heads % heads:
            found = sorted({(layer.num_heads, layer.num_kv_heads) for layer in layers})
            raise StartupError(f"its layers' (heads, KV heads) do not fit one another: {found}")
    return heads, max(layer.head_dim for layer in layers)


def _take_memory(head: Any, used: set[nn.Module], taken: set[str], wants: Wants) -> None:
    """Memory for all weights that text needs but those `taken`, which are then wanted; tables such as
    frequencies are computed.

    Raises StartupError for a table that transformers leaves as it finds it.
    """
    in_float32 = kept_in_float32(head, wants.dtype)
    stored: dict[str, Any] = head.state_dict(keep_vars=True)
    computed = {name: buffer for name, buffer in head.named_buffers() if name not in stored}
    places: dict[str, tuple[nn.Module, str]] = {}
    for name, tensor in {**stored, **computed}.items():
        place, _, leaf = name.rpartition(".")
        module = head.get_submodule(place)
        if name in taken or name in head.all_tied_weights_keys or module not in used:
            if name not in taken or name in head.all_tied_weights_keys:
                wants.scope().allow(name)
            tensor._is_hf_initialized = True
            if module not in used and isinstance(tensor, nn.Parameter):
                nothing: Any = nn.Parameter(torch.empty(0, device="cpu"), requires_grad=False)
                nothing._is_hf_initialized = True
                module._parameters[leaf] = nothing
            continue
        dtype = torch.float32 if in_float32.search(name) else tensor.dtype
        own = torch.empty(tensor.shape, dtype=dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            module._parameters[leaf] = nn.Parameter(own, requires_grad=False)
        else:
            module._buffers[leaf] = own
        if name in stored:
            getattr(module, leaf)._is_hf_initialized = True  # not to be drawn at random
        elif own.is_floating_point():
            own.fill_(torch.nan)
        places[name] = module, leaf
    head.initialize_weights()
    head.tie_weights(recompute_mapping=False)
    for name, (module, leaf) in places.items():  # only now: tying gives biases other memory
        tensor = getattr(module, leaf).data
        if name in stored:
            wants.scope().want(name, tuple(tensor.shape), tensor)
        elif tensor.is_floating_point() and tensor.isnan().any():
            raise StartupError(
                f"{name!r} is a table that transformers does not compute when it loads a model"
            )


def _pin(head: Any) -> list[Any]:
    """Frequencies no longer follow the positions that happen to be in a batch: dynamic ones are the default
    up to the trained length, which is as long as is served. Returns those that must be chosen: longropes.
    """
    rotaries = [part for part in head.modules() if getattr(part, "rope_type", None) in _FOLLOW_POSITIONS]
    longropes = [rotary for rotary in rotaries if rotary.rope_type == "longrope"]
    for rotary in rotaries:
        rotary.rope_type = "default"
    return longropes


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
