"""Rotary position embedding (Su et al., 2021) and the scalings that change its frequencies.

Supported `rope_type`s: default, linear, dynamic, llama3, yarn, longrope, each for whole heads or their
first dimensions only. Two of them change frequencies when a sequence outgrows a length, and its cached keys
go stale. Tern never does that within a sequence:

- dynamic scaling begins beyond the trained length; such a model is served up to that length, where it
  equals the default.
- longrope has two sets of frequencies, for sequences up to the original length and for longer ones. All
  sequences are served with one set: the long one if the longest sequence that is served needs it.
"""

import math

import torch
from msgspec import Struct
from torch import Tensor

from protocol.errors import StartupError

_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""The supported kinds, and the settings without which they mean nothing."""


class RopeParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """`rope_parameters` of a config.json, or `rope_scaling` as it used to be called."""

    rope_type: str | None = None
    type: str | None = None
    """The older spelling of `rope_type`."""
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
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
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    mrope_section: tuple[int, ...] | None = None
    mrope_interleaved: bool | None = None
    """Which dimensions rotate by a picture's height and width; in text, all positions of a token are one."""
    finetuned: bool | None = None
    """Some YaRN checkpoints say so; it changes nothing."""

    @property
    def kind(self) -> str:
        kind = self.rope_type or self.type or "default"
        return {"su": "longrope", "mrope": "default"}.get(kind, kind)  # as the first checkpoints called them

    def check(self, rotary_dim: int) -> None:
        """Raises StartupError when the settings are not supported or not complete."""
        if self.kind not in _NEEDED:
            raise StartupError(f"rope_type {self.kind!r} is not supported; Tern knows {', '.join(_NEEDED)}")
        for name in _NEEDED[self.kind]:
            if getattr(self, name) is None:
                raise StartupError(f"rope_type {self.kind!r} needs {name!r}, which config.json does not give")
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if factors is not None and len(factors) != rotary_dim // 2:
                raise StartupError(
                    f"{name} has {len(factors)} numbers; "
                    f"{rotary_dim} rotated dimensions need {rotary_dim // 2}"
                )


class Rotary:
    """Cosines and sines per position, for halves of a head: (a, b) → (a cos - b sin, b cos + a sin)."""

    def __init__(
        self,
        parameters: RopeParameters,
        theta: float,
        rotary_dim: int,
        trained_len: int,
        dtype: torch.dtype,
    ) -> None:
        """`theta` holds where the parameters give none; `trained_len` is max_position_embeddings."""
        self._parameters, self._theta = parameters, parameters.rope_theta or theta
        self._rotary_dim, self._trained_len = rotary_dim, trained_len
        self._dtype = dtype
        self.cover(0)

    def cover(self, max_len: int) -> None:
        """Make the table of positions 0 … max_len - 1. Must be called before `at`."""
        plain, magnitude = frequencies(
            self._parameters, self._theta, self._rotary_dim, self._trained_len, max_len
        )
        angle = torch.arange(max_len, dtype=torch.float32)[:, None] * plain
        cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
        # The sine's sign is folded in, so that rotating is x * cos + roll(x) * sin.
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
        self._table = table.to(self._dtype).unsqueeze(2)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [n] → (cos, signed sin), each [n, 1, rotary_dim]. Once per step."""
        cos, sin = self._table.index_select(0, positions).unbind(1)
        return cos, sin


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate heads [n, heads, rotary_dim] in place."""
    rolled = x.roll(x.shape[-1] // 2, -1)
    torch.addcmul(x * cos, rolled, sin, out=x)


def frequencies(
    p: RopeParameters, theta: float, dim: int, trained_len: int, served_len: int
) -> tuple[Tensor, float]:
    """(radians per position [dim / 2], factor on cosines and sines)."""
    plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    original = p.original_max_position_embeddings or trained_len
    match p.kind:
        case "linear":
            assert p.factor is not None
            return plain / p.factor, 1.0
        case "llama3":
            return _llama3(p, plain, original), 1.0
        case "yarn":
            return _yarn(p, plain, original, theta, dim)
        case "longrope":
            return _longrope(p, plain, original, trained_len / original, served_len)
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


def _longrope(
    p: RopeParameters, plain: Tensor, original: int, stretch: float, served_len: int
) -> tuple[Tensor, float]:
    """LongRoPE (Ding et al., 2024): each frequency is slowed by its own factor, found by search."""
    assert p.short_factor is not None
    assert p.long_factor is not None
    factors = p.long_factor if served_len > original else p.short_factor
    factor = stretch if p.factor is None else p.factor
    magnitude = p.attention_factor
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / torch.tensor(factors), magnitude


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
