"""Rotary position embedding (Su et al., 2021) and the scalings that change its frequencies.

Supported `rope_type`s: default, linear, dynamic, llama3, yarn. Dynamic scaling (frequencies that depend
on how long the sequence has become, so that cached keys go stale) begins beyond the trained length;
Tern serves such a model up to that length, where it equals the default.
"""

import math

import torch
from msgspec import Struct
from torch import Tensor

from protocol.errors import StartupError

DEFAULT_THETA = 10000.0
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""The supported kinds, and the settings without which they mean nothing."""


class RopeParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """`rope_parameters` of a config.json, or `rope_scaling` as it used to be called."""

    rope_type: str | None = None
    type: str | None = None
    """The older spelling of `rope_type`."""
    rope_theta: float | None = None
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    finetuned: bool | None = None
    """Some YaRN checkpoints say so; it changes nothing."""

    @property
    def kind(self) -> str:
        return self.rope_type or self.type or "default"

    def check(self) -> None:
        """Raises StartupError when the settings are not supported or not complete."""
        if self.kind not in _NEEDED:
            raise StartupError(f"rope_type {self.kind!r} is not supported; Tern knows {', '.join(_NEEDED)}")
        if self.partial_rotary_factor != 1.0:
            raise StartupError(
                f"partial_rotary_factor {self.partial_rotary_factor} is not supported; it must be 1"
            )
        for name in _NEEDED[self.kind]:
            if getattr(self, name) is None:
                raise StartupError(f"rope_type {self.kind!r} needs {name!r}, which config.json does not give")


class Rotary:
    """Cosines and sines per position, for halves of a head: (a, b) → (a cos - b sin, b cos + a sin)."""

    def __init__(
        self,
        parameters: RopeParameters,
        theta: float | None,
        head_dim: int,
        trained_len: int,
        dtype: torch.dtype,
    ) -> None:
        """`theta` is the older place of rope_theta; `trained_len` is max_position_embeddings."""
        theta = parameters.rope_theta or theta or DEFAULT_THETA
        self._frequencies, self._magnitude = frequencies(parameters, theta, head_dim, trained_len)
        self._dtype = dtype
        self.cover(0)

    def cover(self, max_len: int) -> None:
        """Make the table of positions 0 … max_len - 1. Must be called before `at`."""
        angle = torch.arange(max_len, dtype=torch.float32)[:, None] * self._frequencies
        cos, sin = angle.cos() * self._magnitude, angle.sin() * self._magnitude
        # The sine's sign is folded in, so that rotating is x * cos + roll(x) * sin.
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
        self._table = table.to(self._dtype).unsqueeze(2)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [n] → (cos, signed sin), each [n, 1, head_dim]. Once per step."""
        cos, sin = self._table.index_select(0, positions).unbind(1)
        return cos, sin


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate heads [n, heads, head_dim] in place."""
    rolled = x.roll(x.shape[-1] // 2, -1)
    torch.addcmul(x * cos, rolled, sin, out=x)


def frequencies(p: RopeParameters, theta: float, head_dim: int, trained_len: int) -> tuple[Tensor, float]:
    """(radians per position [head_dim / 2], factor on cosines and sines)."""
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    original = p.original_max_position_embeddings or trained_len
    match p.kind:
        case "linear":
            assert p.factor is not None
            return plain / p.factor, 1.0
        case "llama3":
            return _llama3(p, plain, original), 1.0
        case "yarn":
            return _yarn(p, plain, original, theta, head_dim)
        case _:
            return plain, 1.0


def _llama3(p: RopeParameters, plain: Tensor, original: int) -> Tensor:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between are blended."""
    assert p.factor is not None
    assert p.low_freq_factor is not None
    assert p.high_freq_factor is not None
    turns = original * plain / (2 * math.pi)
    blend = ((turns - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / p.factor + blend * plain


def _yarn(p: RopeParameters, plain: Tensor, original: int, theta: float, dim: int) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023): interpolate where a wave turns less than beta_slow times in `original`
    positions, extrapolate above beta_fast, ramp between; and make attention a little sharper."""
    assert p.factor is not None

    def dim_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(p.beta_fast or 32), dim_of(p.beta_slow or 1)
    if p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    interpolate = ramp.clamp(0, 1)
    inverse = plain / p.factor * interpolate + plain * (1 - interpolate)
    if p.attention_factor is not None:
        return inverse, p.attention_factor
    if p.mscale and p.mscale_all_dim:
        return inverse, _magnitude(p.factor, p.mscale) / _magnitude(p.factor, p.mscale_all_dim)
    return inverse, _magnitude(p.factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
