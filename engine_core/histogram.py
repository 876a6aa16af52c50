"""Histogram: how often a number was how large. Knows no units."""

from bisect import bisect_left
from collections.abc import Sequence

from protocol.messages import Distribution


class Histogram:
    """Half a microsecond a number."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def record(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def distribution(self) -> Distribution:
        """So far."""
        return Distribution(tuple(self._counts), self._total)
