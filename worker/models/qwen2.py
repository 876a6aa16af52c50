"""The Qwen2 and Qwen2.5 family: a Llama with biases on q, k and v, whose last layers may have a window."""

from collections.abc import Sequence
from dataclasses import replace

from ..kv_layout import Window
from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Size, windows_of
from .decoder import Decoder, PreNormLayer


class Qwen2Config(DecoderConfig, frozen=True, kw_only=True):
    max_position_embeddings: Size = 32768
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None

    @property
    def windows(self) -> Sequence[Window]:
        """Of each layer."""
        window = self.sliding_window if self.use_sliding_window else None
        if self.layer_types is not None:
            return windows_of(self.layer_types, window, self.num_hidden_layers)
        return [window if i >= self.max_window_layers else None for i in range(self.num_hidden_layers)]


def build_qwen2(config: Qwen2Config, wants: Wants, group: Group) -> Decoder:
    spec, size = replace(config.attention(), bias=True), config.hidden_size
    inner = group.span(config.intermediate_size, "intermediate_size")

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        mlp = GatedMLP(scope / "mlp", size, inner, group)
        return PreNormLayer(scope, size, config.norm, attention, mlp)

    windows = config.windows
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants))
