"""Numbers as people write them: 8k tokens, 512MiB, 4GB; and back again for help texts."""

import re
from typing import Literal

Unit = Literal["bytes", "tokens"]

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_FACTORS: dict[Unit, dict[str, int]] = {
    "tokens": {"": 1, "k": 1 << 10, "m": 1 << 20},
    "bytes": {
        "": 1,
        "b": 1,
        **{unit: 1 << shift for unit, shift in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
        **{unit: 1 << shift for unit, shift in (("kib", 10), ("mib", 20), ("gib", 30), ("tib", 40))},
        **{unit: 1000**power for unit, power in (("kb", 1), ("mb", 2), ("gb", 3), ("tb", 4))},
    },
}
ACCEPTED: dict[Unit, str] = {
    "tokens": "a whole number, or one with k or M (8k = 8192)",
    "bytes": "a whole number, or one with KiB, MiB, GiB (powers of 1024; also K, M, G) or kB, MB, GB",
}


def parse(text: str, unit: Unit) -> int:
    """Raises ValueError, naming what is accepted."""
    match = _NUMBER.fullmatch(text.strip())
    factor = _FACTORS[unit].get(match[2].lower()) if match else None
    value = float(match[1]) * factor if match and factor is not None else 0.5
    if value != int(value):
        raise ValueError(f"expected {ACCEPTED[unit]}")
    return int(value)


def show(value: int, unit: Unit) -> str:
    """The shortest exact way to write it."""
    for suffix in ("GiB", "MiB", "KiB") if unit == "bytes" else ("M", "k"):
        factor = _FACTORS[unit][suffix.lower()]
        if value and value % factor == 0:
            return f"{value // factor}{suffix}"
    return str(value)


def amount(count: float) -> str:
    """Bytes, roughly: "1.5 GiB"."""
    suffixes = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(suffixes) - 1:
        count, power = count / 1024, power + 1
    return (
        f"{count:.0f} {suffixes[power]}" if power == 0 or count >= 100 else f"{count:.1f} {suffixes[power]}"
    )
