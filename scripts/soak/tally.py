"""Tally: what has happened in a soak, and what of it should not have. Knows no process."""

from collections import Counter
from dataclasses import dataclass, field

_MOST_TOLD = 20


@dataclass
class Tally:
    """Counts of one soak."""

    done: Counter[str] = field(default_factory=Counter)
    """Requests that ended as they should, by manner."""
    tokens: int = 0
    broken: int = 0
    """Connections that a dying frontend took with it, of requests without a key."""
    resumed: int = 0
    """… and of requests with one, which went on elsewhere."""
    wrong: Counter[str] = field(default_factory=Counter)
    """What should not have happened, by kind."""
    told: list[str] = field(default_factory=list)
    """The first of these, in words."""

    def problem(self, kind: str, text: str) -> None:
        self.wrong[kind] += 1
        if len(self.told) < _MOST_TOLD:
            self.told.append(f"{kind}: {text}")

    @property
    def requests(self) -> int:
        return sum(self.done.values())

    def compare(self, what: str, got: object, expected: object) -> bool:
        """Whether an answer is the right one; if not, in which way."""
        if got == expected:
            return True
        self.problem("wrong answer", f"{what}: {difference(got, expected)}")
        return False


def difference(got: object, expected: object) -> str:
    """Without the answers themselves: where they part, and their lengths."""
    if not isinstance(got, str | list) or not isinstance(expected, str | list):
        return f"{got!r} instead of {expected!r}"
    same = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    place = min(len(got), len(expected)) if same is None else same
    return f"parts from the right one at {place}; length {len(got)} instead of {len(expected)}"
