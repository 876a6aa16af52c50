"""What was measured on a GPU: a table for people, a file for later. Knows no GPU.

ratio = limit / value   for times, value / limit for rates: 1.00 is all that the hardware has
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Measurement:
    group: str
    """The subset that it belongs to, as `--only` names it."""
    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"] = "lower"
    limit: float | None = None
    """The least or the most that the hardware's measured ceilings allow, in the same unit."""
    goal: float | None = None
    """Ratio to reach."""
    spread: tuple[float, float] | None = None
    """Least and largest of the repetitions."""

    @property
    def ratio(self) -> float | None:
        if self.limit is None:
            return None
        return self.limit / self.value if self.better == "lower" else self.value / self.limit

    def line(self) -> str:
        """A row of the table."""
        limit = "" if self.limit is None else f"{self.limit:,.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        if self.goal is not None:
            ratio += f" (goal {self.goal:.2f})"
        spread = "" if self.spread is None else f" ({self.spread[0]:,.4g} – {self.spread[1]:,.4g})"
        return f"| {self.group} | {self.name} | {self.value:,.4g}{spread} | {self.unit} | {limit} | {ratio} |"


HEAD = "| subset | what | value | unit | floor or ceiling | ratio |\n|---|---|---|---|---|---|"


@dataclass(slots=True)
class Results:
    """Of one run. Saved after every subset, so that a run that is cut off leaves what it has."""

    gpu: str
    date: str
    """YYYY-MM-DD"""
    commit: str
    versions: dict[str, str]
    measurements: list[Measurement] = field(default_factory=list)
    tests: str = "not run"
    left_out: dict[str, str] = field(default_factory=dict)
    """Subset → why."""

    def path(self, folder: Path) -> Path:
        """<gpu>-<date>.json, in characters that any file system takes."""
        name = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return folder / f"{name}-{self.date}.json"

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = self.path(folder)
        content = asdict(self)
        for entry, measurement in zip(content["measurements"], self.measurements, strict=True):
            entry["ratio"] = measurement.ratio
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(path)
        return path

    def table(self) -> str:
        lines = [f"{self.gpu}, {self.date}, commit {self.commit}, {versions(self.versions)}", ""]
        lines += [f"tests: {self.tests}", "", HEAD, *(m.line() for m in self.measurements)]
        lines += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
