"""GPT-2: learned positions instead of rotation, LayerNorm with biases, one GELU layer between two matrices.

Its checkpoints store matrices as [in, out], q, k and v as one, and sometimes the causal mask. Many of them
are of the bare model, without "transformer." before each name.
"""

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch import Tensor

from protocol.errors import StartupError

from ..kernels.activation import gelu_tanh
from ..kernels.attention import StepMetadata
from ..kernels.paged_kv import PagedKV
from ..kernels.rows import fused
from ..kv_layout import Window
from ..layers.attention import Attention, AttentionSpec, StepContext
from ..layers.embedding import Embedding, Head
from ..layers.linear import ColumnLinear, RowLinear
from ..layers.norm import LayerNorm
from ..parallel import Group
from ..weights import Scope, Wants
from .config import Size


class GPT2Config(Struct, frozen=True, kw_only=True):
    """config.json. Keys that are not listed here do not change what a GPT-2 computes."""

    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_embd: Size = 768
    n_layer: Size = 12
    n_head: Size = 12
    n_inner: Size | None = None
    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def check(self) -> None:
        """Raises StartupError for settings that change the maths and are not supported."""
        if self.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):  # two names of one function
            raise StartupError(
                f"activation_function = {self.activation_function!r} is not supported for GPT2; "
                "it must be 'gelu_new'"
            )
        if self.add_cross_attention:
            raise StartupError("add_cross_attention = True is not supported for GPT2; it must be False")
        if self.n_embd % self.n_head:
            raise StartupError(f"{self.n_head} heads and n_embd {self.n_embd} do not fit together")

    def attention(self, index: int) -> AttentionSpec:
        head_dim = self.n_embd // self.n_head
        scale = head_dim**-0.5 if self.scale_attn_weights else 1.0
        return AttentionSpec(
            hidden_size=self.n_embd,
            num_heads=self.n_head,
            num_kv_heads=self.n_head,
            head_dim=head_dim,
            bias=True,
            out_bias=True,
            scale=scale / (index + 1) if self.scale_attn_by_inverse_layer_idx else scale,
            fused="c_attn",
            out="c_proj",
            transposed=True,
        )


class GPT2Layer:
    def __init__(self, scope: Scope, index: int, config: GPT2Config, group: Group) -> None:
        size, eps = config.n_embd, config.layer_norm_epsilon
        inner = group.span(config.n_inner or 4 * size, "n_inner")
        attn, mlp = scope / "attn", scope / "mlp"
        self.ln_1 = LayerNorm(scope / "ln_1", size, eps)
        self.attn = Attention(attn, index, config.attention(index), group)
        self.ln_2 = LayerNorm(scope / "ln_2", size, eps)
        self.activation = fused(gelu_tanh, scope.kernels, scope.device)
        self.c_fc = ColumnLinear(mlp, size, {"c_fc": [inner]}, bias=True, transposed=True)
        self.c_proj = RowLinear(mlp, "c_proj", inner, size, group, bias=True, transposed=True)
        attn.allow("bias")  # the causal mask
        attn.allow("masked_bias")

    def __call__(self, x: Tensor, step: StepContext) -> Tensor:
        x = self.attn(self.ln_1(x), x, step)
        return self.c_proj(self.activation(self.c_fc(self.ln_2(x))), x)


class GPT2:
    """A Model, see registry.py."""

    def __init__(self, config: GPT2Config, wants: Wants, group: Group) -> None:
        self.vocab_size, size = config.vocab_size, config.n_embd
        self.hidden_size = size
        self.num_layers = config.n_layer
        self.max_len = config.n_positions
        self.windows: tuple[Window, ...] = (None,) * config.n_layer
        wants.base_prefix = "transformer."
        model = wants.scope() / "transformer"
        self.wte = Embedding(model / "wte", config.vocab_size, size, group)
        self.wpe = torch.empty(config.n_positions, size, dtype=wants.dtype)
        model.want("wpe.weight", (config.n_positions, size), self.wpe)
        self.layers = [GPT2Layer(model / "h" / str(i), i, config, group) for i in range(config.n_layer)]
        self.ln_f = LayerNorm(model / "ln_f", size, config.layer_norm_epsilon)
        tied = self.wte if config.tie_word_embeddings else None
        self.lm_head = Head(wants.scope() / "lm_head", config.vocab_size, size, group, tied)
        self.head_dim = size // config.n_head
        self.num_kv_heads = self.layers[0].attn.num_kv_heads

    def cover(self, max_len: int) -> None:
        """The table of positions is a weight."""

    def __call__(
        self, token_ids: Tensor, positions: Tensor, caches: list[PagedKV], metadata: StepMetadata
    ) -> Tensor:
        step = StepContext(caches, metadata, None, None)
        x = self.wte(token_ids) + F.embedding(positions, self.wpe)
        for layer in self.layers:
            x = layer(x, step)
        return x

    def states(self, x: Tensor) -> Tensor:
        return self.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.lm_head(self.ln_f(x))
