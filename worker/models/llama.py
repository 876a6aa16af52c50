"""The Llama family: RMSNorm, rotary grouped-query attention, SwiGLU.

Parameters are named as the checkpoint names them; q, k, v and gate, up are merged into one matrix each.
"""

from dataclasses import replace

from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Size
from .decoder import Decoder, PreNormLayer


class LlamaConfig(DecoderConfig, frozen=True, kw_only=True):
    max_position_embeddings: Size = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Size | None = None

    def check(self) -> None:
        super().check()
        self.only("sliding_window", self.sliding_window, None)


def build_llama(config: LlamaConfig, wants: Wants, group: Group) -> Decoder:
    size = config.hidden_size
    inner = group.span(config.intermediate_size, "intermediate_size")
    bias = config.attention_bias
    spec = replace(config.attention(), bias=bias, out_bias=bias)

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        mlp = GatedMLP(scope / "mlp", size, inner, group, bias=config.mlp_bias)
        return PreNormLayer(scope, size, config.norm, attention, mlp)

    windows = [None] * config.num_hidden_layers
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants))
