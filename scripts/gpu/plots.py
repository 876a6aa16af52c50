"""Plots of a run: a line for each model or way, its floor dashed."""

import re
from collections.abc import Iterator

from scripts.bench.plot import Line, plot

from .results import Measurement, Results


def plots(results: Results) -> Iterator[tuple[str, str]]:
    """(name, SVG) of every axis and unit along which some line has two points."""
    placed = [m for m in results.measurements if m.at is not None]
    axes = dict.fromkeys((m.at.axis, m.unit) for m in placed if m.at)
    for axis, unit in axes:
        lines = list(_lines([m for m in placed if m.at and (m.at.axis, m.unit) == (axis, unit)]))
        if lines:
            title = f"{results.gpu}, {results.date}, {results.commit}; dashed: floor or ceiling"
            yield _file_name(f"{axis}-{unit}"), plot(title, axis, unit, lines)


def _file_name(words: str) -> str:
    plain = words.replace("µ", "u").replace("/", " per ")
    return re.sub(r"[^a-z0-9]+", "-", plain.lower())


def _lines(found: list[Measurement]) -> Iterator[Line]:
    for name in dict.fromkeys(m.at.line for m in found if m.at):
        mine = sorted(((m.at.x, m) for m in found if m.at and m.at.line == name), key=lambda pair: pair[0])
        if len(mine) < 2:
            continue
        yield Line(name, [(x, m.value) for x, m in mine])
        if all(m.limit for _, m in mine):
            yield Line("", [(x, m.limit or 1.0) for x, m in mine], dashed=True)
