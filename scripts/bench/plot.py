"""A plot of lines over two logarithmic axes, as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ("#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#34495e", "#117a8b")


class Line(NamedTuple):
    name: str
    """Empty: the line belongs to the one before, and has its colour."""
    points: Sequence[tuple[float, float]]
    """(x, y), both above 0"""
    dashed: bool = False


class _Axis:
    """Numbers between two powers → pixels."""

    def __init__(self, numbers: Sequence[float], base: int, first_px: float, last_px: float) -> None:
        self._base = base
        self._low = math.floor(math.log(min(numbers), base) + 1e-9)
        self._high = max(math.ceil(math.log(max(numbers), base) - 1e-9), self._low + 1)
        self._first_px, self._last_px = first_px, last_px

    def at(self, number: float) -> float:
        share = (math.log(number, self._base) - self._low) / (self._high - self._low)
        return self._first_px + share * (self._last_px - self._first_px)

    def ticks(self) -> list[float]:
        return [float(self._base**power) for power in range(self._low, self._high + 1)]


def plot(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """x in powers of two, y in powers of ten. Readable on light and on dark ground."""
    points = [point for line in lines for point in line.points]
    x = _Axis([point[0] for point in points], 2, LEFT, WIDTH - RIGHT)
    y = _Axis([point[1] for point in points], 10, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, TOP - 16, title, size=14),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name, anchor="middle"),
        _text(8, TOP - 4, y_name),
    ]
    for tick in x.ticks():
        parts.append(_stroke([(x.at(tick), TOP), (x.at(tick), HEIGHT - BOTTOM)], "#e5e7e9", 1))
        parts.append(_text(x.at(tick), HEIGHT - BOTTOM + 18, f"{tick:,.0f}", anchor="middle"))
    for tick in y.ticks():
        parts.append(_stroke([(LEFT, y.at(tick)), (WIDTH - RIGHT, y.at(tick))], "#e5e7e9", 1))
        parts.append(_text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", anchor="end"))
    named = -1
    for line in lines:
        named += bool(line.name)
        colour = COLOURS[max(named, 0) % len(COLOURS)]
        at = [(x.at(a), y.at(b)) for a, b in line.points]
        parts.append(_stroke(at, colour, 2, dashed=line.dashed))
        if not line.dashed:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in at]
        if line.name:
            parts.append(_text(WIDTH - RIGHT + 16, TOP + 20 * named + 12, line.name, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#212f3d", size: int = 12
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{colour}">{escape(text)}</text>'


def _stroke(points: Sequence[tuple[float, float]], colour: str, width: int, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
