"""The Qwen3 family: a Qwen2 without biases that norms each query and key head before it is rotated."""

from dataclasses import replace

from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..parallel import Group
from ..weights import Scope, Wants
from .config import Size
from .decoder import Decoder, PreNormLayer
from .qwen2 import Qwen2Config


class Qwen3Config(Qwen2Config, frozen=True, kw_only=True):
    head_dim: Size | None = 128
    attention_bias: bool = False


def build_qwen3(config: Qwen3Config, wants: Wants, group: Group) -> Decoder:
    size, bias = config.hidden_size, config.attention_bias
    spec = replace(config.attention(), bias=bias, out_bias=bias, head_norm=config.norm)
    inner = group.span(config.intermediate_size, "intermediate_size")

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        mlp = GatedMLP(scope / "mlp", size, inner, group)
        return PreNormLayer(scope, size, config.norm, attention, mlp)

    windows = config.windows
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants))
