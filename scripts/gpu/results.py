"""What was measured on a GPU: a table for people, a file for later. Knows no GPU.

ratio = limit / value   for times, value / limit for rates: 1.00 is all that the hardware has
"""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

MOST_DETAIL = 20_000
"""Characters of what is kept about a failure: its end."""


class At(Struct, frozen=True):
    """Where a measurement stands in a plot: one plot per part and axis."""

    axis: str
    """What x counts: "sequences", "tokens of the prompt"."""
    x: float
    line: str


class Measurement(Struct, frozen=True, kw_only=True):
    part: str
    """As `scripts/gpu_check` names it."""
    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"] = "lower"
    limit: float | None = None
    """The least or the most that is possible, in the same unit: from the device's measured ceilings, or what
    `name` says it stands beside."""
    goal: float | None = None
    """Ratio to reach."""
    spread: tuple[float, float] | None = None
    """Least and largest of the repetitions; `value` is their median."""
    at: At | None = None

    @property
    def ratio(self) -> float | None:
        if self.limit is None:
            return None
        return self.limit / self.value if self.better == "lower" else self.value / self.limit

    def line(self) -> str:
        """A row of the table."""
        limit = "" if self.limit is None else f"{self.limit:,.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        goal = "" if self.goal is None else f"{self.goal:.2f}"
        spread = "" if self.spread is None else f" ({self.spread[0]:,.4g} – {self.spread[1]:,.4g})"
        cells = (self.part, self.name, f"{self.value:,.4g}{spread}", self.unit, limit, ratio, goal)
        return f"| {' | '.join(cells)} |"


HEAD = "| part | what | value | unit | floor or ceiling | ratio | goal |\n|---|---|---|---|---|---|---|"


class Results(Struct, kw_only=True):
    """Of one run. Saved after every measurement, so that a run that is cut off leaves what it has."""

    gpu: str
    date: str
    """YYYY-MM-DD"""
    commit: str
    versions: dict[str, str]
    """Of the driver, CUDA, torch, Triton, Python, transformers."""
    measurements: list[Measurement] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """What went wrong, by the step that it ended."""
    details: dict[str, str] = field(default_factory=dict)
    """Of the same steps: traceback, and the end of what the process in question wrote."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What there was no time for."""

    def stem(self, folder: Path) -> Path:
        """<gpu>-<date>, in characters that any file system takes."""
        name = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return folder / f"{name}-{self.date}"

    def fail(self, step: str, error: Exception) -> None:
        """It ended so; its notes are told with its traceback."""
        self.failed[step] = f"{type(error).__name__}: {' '.join(str(error).split())[-600:]}"
        self.details[step] = "".join(traceback.format_exception(error))[-MOST_DETAIL:]

    def save(self, folder: Path) -> Path:
        """Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        path = self.stem(folder).with_suffix(".json")
        content = msgspec.to_builtins(self)
        for entry, measurement in zip(content["measurements"], self.measurements, strict=True):
            entry["ratio"] = measurement.ratio
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
        temporary.replace(path)
        return path

    def summary(self) -> str:
        """What it was measured with, and what is missing."""
        said = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"{self.gpu}, {self.date}, commit {self.commit}, {said}"]
        lines += [f"- failed: {name}: {why}" for name, why in self.failed.items()]
        lines += [f"- left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)

    def table(self) -> str:
        """For people; grouped by part, in the order in which the parts began."""
        parts = list(dict.fromkeys(m.part for m in self.measurements))
        ordered = sorted(self.measurements, key=lambda m: parts.index(m.part))
        return "\n".join([self.summary(), "", HEAD, *(m.line() for m in ordered)])


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
