"""Launched: a step that is under way. On the CPU it is done when it is launched; on a device it may take a
while, and the next one is launched meanwhile.
"""

from dataclasses import dataclass
from typing import Protocol

from protocol.steps import StepResult

DEPTH = 2
"""Steps launched and not yet collected, at most: while the host reads one's result, the device computes the
next."""


class Launched(Protocol):
    def ready(self) -> bool:
        """Whether `result` would not wait."""

    def result(self) -> StepResult:
        """Once, and in the order of the launches. Raises what went wrong on the device."""


@dataclass(frozen=True, slots=True)
class Done:
    """A Launched."""

    answer: StepResult

    def ready(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self.answer
