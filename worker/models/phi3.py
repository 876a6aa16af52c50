"""The Phi-3 and Phi-4 family: a Llama whose checkpoints hold q, k, v and gate, up as one matrix each, and
which may rotate only a part of each head, by longrope."""

from dataclasses import replace
from typing import ClassVar

import msgspec

from protocol.errors import StartupError

from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..layers.rotary import RopeParameters
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Size
from .decoder import Decoder, PreNormLayer


class Phi3Config(DecoderConfig, frozen=True, kw_only=True):
    max_position_embeddings: Size = 4096
    original_max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None

    rotates_in_part: ClassVar[bool] = True

    @property
    def rope(self) -> RopeParameters:
        return msgspec.structs.replace(
            super().rope, original_max_position_embeddings=self.original_max_position_embeddings
        )

    def check(self) -> None:
        super().check()
        if self.rope.kind not in ("default", "longrope"):
            raise StartupError(
                f"rope_type {self.rope.kind!r} is not supported for Phi3; it must be 'default' or 'longrope'"
            )


def build_phi3(config: Phi3Config, wants: Wants, group: Group) -> Decoder:
    spec, size = replace(config.attention(), fused="qkv_proj"), config.hidden_size
    inner = group.span(config.intermediate_size, "intermediate_size")

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        mlp = GatedMLP(scope / "mlp", size, inner, group, fused="gate_up_proj")
        return PreNormLayer(scope, size, config.norm, attention, mlp)

    windows = [config.sliding_window] * config.num_hidden_layers
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants))
