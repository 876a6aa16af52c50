"""StopStrings: finds the first stop string in a text that comes in pieces. Knows nothing of tokens.

Of several, the one that is complete first wins (and of those that end together, the longest), so the
answer does not depend on how the text was cut into pieces.

    text so far   The answer is 4
    stop string             "\\n\\nQ"        held back while the tail could begin it: "…4\\n" sends "…4"
"""

from collections.abc import Sequence


class StopStrings:
    """For one answer. What `push` returns may be sent; after `found` is set there is no more."""

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._include = include
        self._beginnings = frozenset(stop[:i] for stop in stops for i in range(1, len(stop)))
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops))
        self._held = ""

    def push(self, text: str) -> str:
        """What is certain not to belong to a stop string."""
        text = self._held + text
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, start, self.found = min(ends)
            self._held = ""
            return text[: end if self._include else start]
        start = max(len(text) - self._longest + 1, 0)
        while start < len(text) and not (
            text[start] in self._first_chars and text[start:] in self._beginnings
        ):
            start += 1
        self._held = text[start:]
        return text[:start]

    def flush(self) -> str:
        """What was held back, when the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held
