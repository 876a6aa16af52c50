"""The Gemma 3 family (text): local layers with a window and global ones, each kind with its own rotation;
norms of 1 + weight before and after attention and network, and of query and key heads; a scaled embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from msgspec import Struct
from torch import Tensor

from ..kernels.activation import gelu_tanh_and_multiply
from ..kv_layout import Window
from ..layers.attention import Attention, StepContext
from ..layers.mlp import GatedMLP
from ..layers.norm import OffsetRMSNorm
from ..layers.rotary import RopeParameters, Rotary
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Rotaries, Size, windows_of
from .decoder import Decoder


class LayerRopes(Struct, frozen=True, forbid_unknown_fields=True):
    full_attention: RopeParameters | None = None
    sliding_attention: RopeParameters | None = None


class Gemma3Config(DecoderConfig, frozen=True, kw_only=True):
    vocab_size: Size = 262208
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Size = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    max_position_embeddings: Size = 131072
    rope_parameters: LayerRopes | None = None  # type: ignore[assignment]
    rope_local_base_freq: float = 1e4
    tie_word_embeddings: bool = True
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256.0
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size = 6
    layer_types: tuple[str, ...] | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False

    activation: ClassVar[str] = "gelu_pytorch_tanh"

    @property
    def rope(self) -> RopeParameters:
        """Of global layers."""
        given = self.rope_parameters.full_attention if self.rope_parameters else None
        return given or self.rope_scaling or RopeParameters()

    @property
    def local_rope(self) -> RopeParameters:
        given = self.rope_parameters.sliding_attention if self.rope_parameters else None
        return given or RopeParameters()

    @property
    def norm(self) -> Callable[[Scope, int], OffsetRMSNorm]:
        return partial(OffsetRMSNorm, eps=self.rms_norm_eps)

    @property
    def windows(self) -> Sequence[Window]:
        """Of each layer."""
        pattern, count = self.sliding_window_pattern, self.num_hidden_layers
        regular = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)]
        return windows_of(self.layer_types or regular, self.sliding_window, count)

    def check(self) -> None:
        super().check()
        self.local_rope.check(self.rotary_dim)
        self.only("hidden_activation", self.hidden_activation, self.activation)
        self.only("attn_logit_softcapping", self.attn_logit_softcapping, None)
        self.only("use_bidirectional_attention", self.use_bidirectional_attention or False, False)

    def rotaries(self, windows: Sequence[Window], wants: Wants, default_theta: float = 1e6) -> Rotaries:
        """Each kind of layer has its own."""
        dim, max_len, dtype = self.rotary_dim, self.max_position_embeddings, wants.dtype
        found: dict[Window, Rotary] = {
            self.sliding_window: Rotary(self.local_rope, self.rope_local_base_freq, dim, max_len, dtype)
        }
        found[None] = Rotary(self.rope, self.rope_theta or default_theta, dim, max_len, dtype)
        return {window: found[window] for window in windows}


class Gemma3Layer:
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x)))"""

    def __init__(self, scope: Scope, config: Gemma3Config, attention: Attention, mlp: GatedMLP) -> None:
        size, norm = config.hidden_size, config.norm
        self.input_layernorm = norm(scope / "input_layernorm", size)
        self.self_attn = attention
        self.post_attention_layernorm = norm(scope / "post_attention_layernorm", size)
        self.pre_feedforward_layernorm = norm(scope / "pre_feedforward_layernorm", size)
        self.mlp = mlp
        self.post_feedforward_layernorm = norm(scope / "post_feedforward_layernorm", size)

    def __call__(self, x: Tensor, step: StepContext) -> Tensor:
        x = self.post_attention_layernorm(self.self_attn(x, None, step, self.input_layernorm), x)
        return self.post_feedforward_layernorm(self.mlp(x, None, self.pre_feedforward_layernorm), x)


def build_gemma3(config: Gemma3Config, wants: Wants, group: Group) -> Decoder:
    bias = config.attention_bias
    scale = config.query_pre_attn_scalar**-0.5
    spec = replace(config.attention(), bias=bias, out_bias=bias, scale=scale, head_norm=config.norm)
    inner = group.span(config.intermediate_size, "intermediate_size")

    def layer(scope: Scope, index: int) -> Gemma3Layer:
        attention = Attention(scope / "self_attn", index, spec, group)
        mlp = GatedMLP(scope / "mlp", config.hidden_size, inner, group, activation=gelu_tanh_and_multiply)
        return Gemma3Layer(scope, config, attention, mlp)

    windows = config.windows
    return Decoder(
        config,
        wants,
        group,
        layer,
        windows,
        config.rotaries(windows, wants),
        # Rounded to the model's type, as it was in training: sqrt(1152) = 33.94 is 34 in bfloat16.
        embedding_scale=float(torch.tensor(config.hidden_size**0.5, dtype=wants.dtype, device="cpu")),
        soft_cap=config.final_logit_softcapping,
    )
