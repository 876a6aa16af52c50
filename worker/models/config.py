"""DecoderConfig: the settings that the config.jsons of almost all families have, and their checks.

A family's own Struct adds its settings, and says what its layers are made of. Keys of a config.json that
neither lists do not change what the family computes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from protocol.errors import StartupError

from ..kv_layout import Window
from ..layers.attention import AttentionSpec
from ..layers.norm import RMSNorm
from ..layers.rotary import RopeParameters, Rotary
from ..weights import Scope, Wants

Size = Annotated[int, Meta(ge=1)]
Rotaries = Mapping[Window, Rotary]
"""Of the layers of each window."""


class DecoderConfig(Struct, frozen=True, kw_only=True):
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: RopeParameters | None = None
    rope_scaling: RopeParameters | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"

    activation: ClassVar[str] = "silu"
    """The hidden_act that the family knows."""
    rotates_in_part: ClassVar[bool] = False
    """Whether the family knows partial_rotary_factor."""

    @property
    def heads(self) -> tuple[int, int, int]:
        """(query heads, KV heads, head_dim)"""
        heads = self.num_attention_heads
        return heads, self.num_key_value_heads or heads, self.head_dim or self.hidden_size // heads

    @property
    def rope(self) -> RopeParameters:
        return self.rope_parameters or self.rope_scaling or RopeParameters()

    @property
    def rotated_part(self) -> float:
        """Of each head."""
        return self.rope.partial_rotary_factor or self.partial_rotary_factor or 1.0

    @property
    def rotary_dim(self) -> int:
        return int(self.heads[2] * self.rotated_part)

    def check(self) -> None:
        """Raises StartupError for settings that change the maths and are not supported."""
        heads, kv_heads, head_dim = self.heads
        self.only("hidden_act", self.hidden_act, self.activation)
        if not self.rotates_in_part:
            self.only("partial_rotary_factor", self.rotated_part, 1.0)
        if heads % kv_heads or self.rotary_dim % 2 or (self.head_dim is None and self.hidden_size % heads):
            raise StartupError(
                f"{heads} heads, {kv_heads} KV heads of {head_dim} and hidden_size {self.hidden_size} "
                "do not fit together"
            )
        self.rope.check(self.rotary_dim)

    def only(self, name: str, value: object, supported: object) -> None:
        """Raises StartupError unless the setting has the one value that is supported."""
        if value != supported:
            family = type(self).__name__.removesuffix("Config")
            raise StartupError(f"{name} = {value!r} is not supported for {family}; it must be {supported!r}")

    @property
    def norm(self) -> Callable[[Scope, int], RMSNorm]:
        return partial(RMSNorm, eps=self.rms_norm_eps)

    def attention(self) -> AttentionSpec:
        heads, kv_heads, head_dim = self.heads
        return AttentionSpec(
            hidden_size=self.hidden_size,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rotary_dim=self.rotary_dim,
        )

    def rotaries(self, windows: Sequence[Window], wants: Wants, default_theta: float = 1e4) -> Rotaries:
        """One rotation for all layers."""
        theta = self.rope_theta or default_theta
        rotary = Rotary(self.rope, theta, self.rotary_dim, self.max_position_embeddings, wants.dtype)
        return dict.fromkeys(windows, rotary)


def windows_of(layer_types: Sequence[str], window: Window, num_layers: int) -> Sequence[Window]:
    """Of each layer, from `layer_types` of a config.json. Raises StartupError."""
    if len(layer_types) != num_layers:
        raise StartupError(f"layer_types names {len(layer_types)} layers; num_hidden_layers is {num_layers}")
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise StartupError(
                f"layer_types has {kind!r}; only 'full_attention' and 'sliding_attention' are supported"
            )
    if window is None and "sliding_attention" in layer_types:
        raise StartupError("layer_types has 'sliding_attention', but config.json gives no sliding_window")
    return [window if kind == "sliding_attention" else None for kind in layer_types]


def check_experts(num_experts: int, top_k: int) -> None:
    """Raises StartupError."""
    if top_k > num_experts:
        raise StartupError(f"num_experts_per_tok is {top_k}, but there are {num_experts} experts")
