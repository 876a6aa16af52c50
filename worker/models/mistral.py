"""The Mistral family: a Llama whose layers may all have a sliding window."""

from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Size
from .decoder import Decoder, PreNormLayer


class MistralConfig(DecoderConfig, frozen=True, kw_only=True):
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = 4096


def build_mistral(config: MistralConfig, wants: Wants, group: Group) -> Decoder:
    spec, size = config.attention(), config.hidden_size
    inner = group.span(config.intermediate_size, "intermediate_size")

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        mlp = GatedMLP(scope / "mlp", size, inner, group)
        return PreNormLayer(scope, size, config.norm, attention, mlp)

    windows = [config.sliding_window] * config.num_hidden_layers
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants))
