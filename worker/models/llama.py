"""The Llama family: RMSNorm, rotary grouped-query attention, SwiGLU.

Parameters are named as the checkpoint names them; q, k, v and gate, up are merged into one matrix each.
"""

from typing import Annotated

from msgspec import Meta, Struct
from torch import Tensor

from protocol.errors import StartupError

from ..kernels.activation import silu_and_multiply
from ..kernels.attention import AttentionMetadata
from ..layers.attention import Attention, StepContext
from ..layers.embedding import Embedding, Head
from ..layers.linear import ColumnLinear, RowLinear
from ..layers.norm import RMSNorm
from ..layers.rotary import RopeParameters, Rotary
from ..parallel import Group
from ..weights import Scope, Wants

Size = Annotated[int, Meta(ge=1)]


class LlamaConfig(Struct, frozen=True, kw_only=True):
    """config.json. Keys that are not listed here do not change what a Llama computes."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: RopeParameters | None = None
    rope_scaling: RopeParameters | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    sliding_window: int | None = None
    partial_rotary_factor: float = 1.0

    @property
    def heads(self) -> tuple[int, int, int]:
        """(query heads, KV heads, head_dim)"""
        heads = self.num_attention_heads
        return heads, self.num_key_value_heads or heads, self.head_dim or self.hidden_size // heads

    @property
    def rope(self) -> RopeParameters:
        return self.rope_parameters or self.rope_scaling or RopeParameters()

    def check(self) -> None:
        """Raises StartupError for settings that change the maths and are not supported."""
        heads, kv_heads, head_dim = self.heads
        for name, value, only in (
            ("hidden_act", self.hidden_act, "silu"),
            ("sliding_window", self.sliding_window, None),
            ("partial_rotary_factor", self.partial_rotary_factor, 1.0),
        ):
            if value != only:
                raise StartupError(f"{name} = {value!r} is not supported for Llama; it must be {only!r}")
        if heads % kv_heads or head_dim % 2 or (self.head_dim is None and self.hidden_size % heads):
            raise StartupError(
                f"{heads} heads, {kv_heads} KV heads of {head_dim} and hidden_size {self.hidden_size} "
                "do not fit together"
            )
        self.rope.check()


class LlamaLayer:
    def __init__(self, scope: Scope, index: int, config: LlamaConfig, group: Group) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        inner = group.span(config.intermediate_size, "intermediate_size")
        mlp = scope / "mlp"
        self.input_layernorm = RMSNorm(scope / "input_layernorm", size, eps)
        self.self_attn = Attention(
            scope / "self_attn", index, size, *config.heads, group, bias=config.attention_bias
        )
        self.post_attention_layernorm = RMSNorm(scope / "post_attention_layernorm", size, eps)
        gate_up = {"gate_proj": inner, "up_proj": inner}
        self.gate_up_proj = ColumnLinear(mlp, size, gate_up, bias=config.mlp_bias)
        self.down_proj = RowLinear(mlp, "down_proj", inner, size, group, bias=config.mlp_bias)

    def __call__(self, x: Tensor, step: StepContext) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), x, step)
        inner = silu_and_multiply(self.gate_up_proj(self.post_attention_layernorm(x)))
        return self.down_proj(inner, x)


class Llama:
    """A Model, see registry.py."""

    config_type = LlamaConfig

    def __init__(self, config: LlamaConfig, wants: Wants, group: Group) -> None:
        self.vocab_size = config.vocab_size
        self.num_layers = config.num_hidden_layers
        self.max_len = config.max_position_embeddings
        model = wants.scope() / "model"
        size, layers = config.hidden_size, model / "layers"
        self.embed_tokens = Embedding(model / "embed_tokens", config.vocab_size, size, group)
        self.layers = [LlamaLayer(layers / str(i), i, config, group) for i in range(config.num_hidden_layers)]
        self.norm = RMSNorm(model / "norm", size, config.rms_norm_eps)
        tied = self.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = Head(wants.scope() / "lm_head", config.vocab_size, size, group, tied)
        self.head_dim = config.heads[2]
        self.num_kv_heads = self.layers[0].self_attn.num_kv_heads
        self.rotary = Rotary(config.rope, config.rope_theta, self.head_dim, self.max_len, wants.dtype)

    def cover(self, max_len: int) -> None:
        self.rotary.cover(max_len)

    def __call__(
        self, token_ids: Tensor, positions: Tensor, caches: list[Tensor], metadata: AttentionMetadata
    ) -> Tensor:
        cos, sin = self.rotary.at(positions)
        step = StepContext(caches, metadata, cos, sin)
        x = self.embed_tokens(token_ids)
        for layer in self.layers:
            x = layer(x, step)
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self.lm_head(self.norm(x))
