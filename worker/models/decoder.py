"""Decoder: embedding → layers → norm → head, which almost all families share. Knows no family: what the
layers are made of, and which window and rotation each has, is given.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ..kernels.attention import StepMetadata
from ..kernels.paged_kv import PagedKV
from ..kv_layout import Window
from ..layers.attention import Attention, StepContext
from ..layers.embedding import Embedding, Head
from ..layers.norm import Norm
from ..layers.tape import Steps, Tapes
from ..parallel import Group
from ..weights import Scope, Wants
from .config import DecoderConfig, Rotaries


class Layer(Protocol):
    self_attn: Attention

    def __call__(self, x: Tensor, step: StepContext) -> Tensor: ...


class FeedForward(Protocol):
    def __call__(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """residual + feed_forward(norm(x))"""


class PreNormLayer:
    """x += attention(norm(x)); x += mlp(norm(x))"""

    def __init__(
        self,
        scope: Scope,
        size: int,
        norm: Callable[[Scope, int], Norm],
        attention: Attention,
        mlp: FeedForward,
    ) -> None:
        self.input_layernorm = norm(scope / "input_layernorm", size)
        self.self_attn = attention
        self.post_attention_layernorm = norm(scope / "post_attention_layernorm", size)
        self.mlp = mlp

    def __call__(self, x: Tensor, step: StepContext) -> Tensor:
        x = self.self_attn(x, x, step, self.input_layernorm)
        return self.mlp(x, x, self.post_attention_layernorm)


class Decoder:
    """A Model, see registry.py."""

    def __init__(
        self,
        config: DecoderConfig,
        wants: Wants,
        group: Group,
        layer: Callable[[Scope, int], Layer],
        windows: Sequence[Window],
        rotaries: Rotaries,
        *,
        embedding_scale: float | None = None,
        soft_cap: float | None = None,
    ) -> None:
        """`windows` of each layer. `embedding_scale` and `soft_cap` (of the logits) are rarely wanted."""
        assert len(windows) == config.num_hidden_layers
        self.vocab_size, size = config.vocab_size, config.hidden_size
        self.hidden_size = size
        self.num_layers = config.num_hidden_layers
        wants.base_prefix = "model."
        self.max_len = config.max_position_embeddings
        model = wants.scope() / "model"
        self.embed_tokens = Embedding(model / "embed_tokens", config.vocab_size, size, group)
        self.embedding_scale = embedding_scale
        self.layers = [layer(model / "layers" / str(i), i) for i in range(config.num_hidden_layers)]
        self.norm = config.norm(model / "norm", size)
        tied = self.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = Head(wants.scope() / "lm_head", config.vocab_size, size, group, tied, soft_cap)
        self.head_dim = config.heads[2]
        self.num_kv_heads = self.layers[0].self_attn.num_kv_heads
        self.windows = tuple(windows)
        self.rotaries = rotaries
        kernels, alone = model.kernels, model.device is None and group.size == 1
        self.tapes = Tapes(kernels) if kernels is not None and kernels.records and alone else None

    def cover(self, max_len: int) -> None:
        for rotary in set(self.rotaries.values()):
            rotary.cover(max_len)

    def __call__(
        self, token_ids: Tensor, positions: Tensor, caches: list[PagedKV], metadata: StepMetadata
    ) -> Tensor:
        steps = {
            window: StepContext(caches, metadata, *rotary.at(positions))
            for window, rotary in self.rotaries.items()
        }
        x = self.embed_tokens(token_ids)
        if self.embedding_scale is not None:
            x *= self.embedding_scale
        return (
            self._all_layers(x, steps) if self.tapes is None else self.tapes.run(x, steps, self._all_layers)
        )

    def _all_layers(self, x: Tensor, steps: Steps) -> Tensor:
        for layer, window in zip(self.layers, self.windows, strict=True):
            x = layer(x, steps[window])
        return x

    def states(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.lm_head(x, self.norm)
