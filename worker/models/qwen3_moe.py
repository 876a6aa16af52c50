"""The Qwen3-MoE family: a Qwen3 most of whose feed-forward networks are mixtures of experts."""

from dataclasses import replace

from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..layers.moe import SparseMLP
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Size, check_experts
from .decoder import Decoder, FeedForward, PreNormLayer


class Qwen3MoeConfig(DecoderConfig, frozen=True, kw_only=True):
    max_position_embeddings: Size = 32768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    moe_intermediate_size: Size = 768
    num_experts: Size | None = None
    num_local_experts: Size = 128
    """The newer name of `num_experts`."""
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = None

    @property
    def experts(self) -> int:
        return self.num_experts or self.num_local_experts

    def check(self) -> None:
        super().check()
        check_experts(self.experts, self.num_experts_per_tok)

    def is_sparse(self, layer: int) -> bool:
        return layer not in (self.mlp_only_layers or ()) and (layer + 1) % self.decoder_sparse_step == 0


def build_qwen3_moe(config: Qwen3MoeConfig, wants: Wants, group: Group) -> Decoder:
    size, bias = config.hidden_size, config.attention_bias
    spec = replace(config.attention(), bias=bias, out_bias=bias, head_norm=config.norm)

    def feed_forward(scope: Scope, index: int) -> FeedForward:
        if not config.is_sparse(index):
            return GatedMLP(scope, size, group.span(config.intermediate_size, "intermediate_size"), group)
        inner = group.span(config.moe_intermediate_size, "moe_intermediate_size")
        experts = [GatedMLP(scope / "experts" / str(i), size, inner, Group()) for i in range(config.experts)]
        top_k, renormalize = config.num_experts_per_tok, config.norm_topk_prob
        return SparseMLP(scope, size, group, experts, top_k, renormalize=renormalize)

    def layer(scope: Scope, index: int) -> PreNormLayer:
        attention = Attention(scope / "self_attn", index, spec, group)
        return PreNormLayer(scope, size, config.norm, attention, feed_forward(scope / "mlp", index))

    windows = [config.sliding_window if config.use_sliding_window else None] * config.num_hidden_layers
    return Decoder(config, wants, group, layer, windows, config.rotaries(windows, wants))
