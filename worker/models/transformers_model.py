"""TransformersModel: a decoder that Tern does not declare, computed by transformers' own modelling code.

Only attention is ours (transformers_attention.py), so no cache object and no mask of transformers is in
use; a step's flat tokens are a batch of one, with their positions.

    config.json → model without memory → trace → memory → weights → its own forward compared with ours
                                           └ what each layer's attention asks for; the rest is refused

What decides is how the code behaves, not a list of names. The trace refuses, before weights are read,
whatever our attention would not honour; the comparison catches what a trace cannot see, such as positions
that are ignored. A checkpoint's own code is never run.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from protocol.errors import StartupError

from ..checkpoint import Checkpoint
from ..kernels.attention import StepMetadata
from ..kernels.paged_kv import PagedKV
from ..weights import Wants
from .transformers_attention import ATTENTION, TRACE, LayerSpec, Step, Trace, attending
from .transformers_check import compare, logits_in_company, probes
from .transformers_weights import ConvertedCheckpoint

_TRACED_TOKENS = 5
_FOLLOW_POSITIONS = ("dynamic", "longrope")
"""Kinds of rotation whose code changes the frequencies while it runs."""


@dataclass
class _Output(MoeModelOutputWithPast):
    """All that heads look for in what a decoder returns."""

    cross_attentions: Any = None


class _Given(nn.Module):
    """Stands where the decoder was: hidden states in, the same out."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _Output(last_hidden_state=inputs_embeds)


class TransformersModel:
    """A Model, see registry.py."""

    def __init__(self, config: Any, wants: Wants) -> None:
        """Raises StartupError."""
        name = type(config).__name__.removesuffix("Config")
        try:
            self._head: Any = _without_memory(config, wants.dtype)
            self._longropes = _pin(self._head)
            self._layers = _trace(self._head, config)
        except StartupError as error:
            raise StartupError(f"{name}: {error.message}", hint=error.hint) from error
        except Exception as error:
            message = f"{name}: its code in transformers cannot be run with our attention"
            raise StartupError(f"{message} ({_first_line(error)})") from error
        self._dtype = wants.dtype
        self.hidden_size: int = self._head.get_output_embeddings().weight.shape[1]
        self.vocab_size: int = config.vocab_size
        self.max_len: int = config.max_position_embeddings
        self.num_layers = len(self._layers)
        self.num_kv_heads, self.head_dim = self._layers[0].num_kv_heads, self._layers[0].head_dim
        self.windows = tuple(layer.window for layer in self._layers)
        _take_memory(self._head, wants)
        self._decoder: Any = self._head.get_decoder()
        wants.view = partial(ConvertedCheckpoint, self._head)
        wants.scope().after_loading(self._part)

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

    @torch.inference_mode()
    def _part(self) -> None:
        """Weights are there: part the decoder from the head, whose own code scales and caps logits.

        Raises StartupError when the parts do not compute what the whole does.
        """
        head, sequences = self._head, probes(self.vocab_size)
        head.config._attn_implementation = "eager"
        head.config._experts_implementation = "eager"
        expected = [head(input_ids=ids[None], use_cache=False).logits[0].float() for ids in sequences]
        head.config._attn_implementation = ATTENTION
        path = next(path for path, module in head.named_modules() if module is self._decoder)
        head.set_submodule(path, _Given())
        ours = logits_in_company(
            lambda *step: self.logits(self(*step)),
            sequences,
            (self.num_kv_heads, self.head_dim),
            self.windows,
            self._dtype,
        )
        compare(expected, ours, self._dtype)


def build_transformers(checkpoint: Checkpoint, wants: Wants) -> TransformersModel:
    """Raises StartupError for what cannot be right."""
    quieten: Any = logging.set_verbosity_error
    quieten()
    raw = checkpoint.config(dict[str, Any])
    model_type = str(raw.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise StartupError(f"model_type {model_type!r} is not one that transformers has code for")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as error:  # its own validation
        raise StartupError(f"config.json is refused by transformers: {_first_line(error)}") from error
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise StartupError(f"model_type {model_type!r} has an encoder, which is not supported")
    if config.get_text_config(decoder=True) is not config or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise StartupError(f"model_type {model_type!r} is not a text decoder, which is all that is served")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    known, named = kind.__name__, config.architectures or []
    if named and known not in named:
        raise StartupError(
            f"architectures {named} are not supported; transformers' own for {model_type!r} is {known}"
        )
    return TransformersModel(config, wants)


# ── building ────────────────────────────────────────────────────────────────────────────────────────


def _without_memory(config: Any, dtype: torch.dtype) -> Any:
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config._attn_implementation = TRACE
    config._experts_implementation = "batched_mm"  # the one that can be traced
    with ExitStack() as stack:
        for context in kind.get_init_context(dtype, False, False, False):
            stack.enter_context(context)
        return kind(config).eval().requires_grad_(False)


@torch.no_grad()
def _trace(head: Any, config: Any) -> list[LayerSpec]:
    """Raises StartupError, and whatever the model's code raises."""
    if getattr(config, "max_position_embeddings", None) is None:
        raise StartupError("config.json gives no max_position_embeddings")
    convolution = next((name for name, part in head.named_modules() if isinstance(part, nn.Conv1d)), None)
    if convolution is not None:
        raise StartupError(f"{convolution!r} mixes neighbouring tokens, which is not supported")
    trace, shape = Trace(), (1, _TRACED_TOKENS)
    ids = torch.zeros(shape, dtype=torch.int64, device="meta")
    mask = torch.ones_like(ids)
    with attending(trace):
        logits: Tensor = head(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False).logits
    if logits.shape != (*shape, config.vocab_size):
        raise StartupError(
            f"its logits have the shape {list(logits.shape)}; vocab_size is {config.vocab_size}"
        )
    if len(trace.layers) != config.num_hidden_layers:
        raise StartupError(
            f"it has {config.num_hidden_layers} layers and attends {len(trace.layers)} times; layers without "
            "attention (linear, recurrent, convolutions) are not supported"
        )
    kinds = sorted({(layer.num_kv_heads, layer.head_dim) for layer in trace.layers})
    if len(kinds) > 1:
        raise StartupError(f"its layers have different (KV heads, head_dim): {kinds}")
    return trace.layers


def _take_memory(head: Any, wants: Wants) -> None:
    """Memory for all weights, which are then wanted; tables such as frequencies are computed."""
    in_float32 = re.compile("|".join(head._get_dtype_plan(wants.dtype)) or "(?!)")
    stored: dict[str, Any] = head.state_dict(keep_vars=True)
    tables = {name: buffer for name, buffer in head.named_buffers() if name not in stored}
    for name, tensor in {**stored, **tables}.items():
        if name in head.all_tied_weights_keys:
            wants.scope().allow(name)
            tensor._is_hf_initialized = True
            continue
        dtype = torch.float32 if in_float32.search(name) else tensor.dtype
        own = torch.empty(tensor.shape, dtype=dtype, device="cpu")
        place, _, leaf = name.rpartition(".")
        module = head.get_submodule(place)
        if isinstance(tensor, nn.Parameter):
            module._parameters[leaf] = nn.Parameter(own, requires_grad=False)
        else:
            module._buffers[leaf] = own
        if name in stored:
            getattr(module, leaf)._is_hf_initialized = True  # not to be drawn at random
            wants.scope().want(name, tuple(tensor.shape), own)
    head.initialize_weights()
    head.tie_weights(recompute_mapping=False)


def _pin(head: Any) -> list[Any]:
    """Frequencies no longer follow the positions that happen to be in a batch: dynamic ones are the default
    up to the trained length, which is as long as is served. Returns those that must be chosen: longropes.
    """
    rotaries = [part for part in head.modules() if getattr(part, "rope_type", None) in _FOLLOW_POSITIONS]
    longropes = [rotary for rotary in rotaries if rotary.rope_type == "longrope"]
    for rotary in rotaries:
        rotary.rope_type = "default"
    return longropes


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
