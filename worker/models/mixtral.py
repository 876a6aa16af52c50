"""The Mixtral family: a Mistral whose feed-forward networks are mixtures of experts."""

from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..layers.moe import SparseMLP
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Size, check_experts
from .decoder import Decoder, PreNormLayer


class MixtralConfig(DecoderConfig, frozen=True, kw_only=True):
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2

    def check(self) -> None:
        super().check()
        check_experts(self.num_local_experts, self.num_experts_per_tok)


def build_mixtral(config: MixtralConfig, wants: Wants, group: Group) -> Decoder:
    spec, size = config.attention(), config.hidden_size
    inner = group.span(config.intermediate_size, "intermediate_size")

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        moe = scope / "block_sparse_moe"
        experts = [
            GatedMLP(moe / "experts" / str(i), size, inner, Group(), names=("w1", "w3", "w2"))
            for i in range(config.num_local_experts)
        ]
        mlp = SparseMLP(moe, size, group, experts, config.num_experts_per_tok, renormalize=True)
        return PreNormLayer(scope, size, config.norm, attention, mlp)

    windows = [config.sliding_window] * config.num_hidden_layers
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants, 1e6))
