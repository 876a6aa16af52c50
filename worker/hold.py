"""A worker that is held in the middle of its work, for tests: what strikes then never comes too late.

A file says how far it goes: `SERIAL tokens NUMBER` or `SERIAL steps NUMBER`, counted from when that was first
seen. Then the next step waits until the file is gone, or says something else. Knows nothing of plans.
"""

import time
from collections.abc import Callable
from pathlib import Path

from protocol import columns
from protocol.messages import NO_TOKEN
from protocol.steps import StepResult

LOOK_INTERVAL_S = 0.002


class Hold:
    def __init__(self, file: Path, beat: Callable[[], None]) -> None:
        """`beat`: called while it waits, so that nobody takes that for a hang."""
        self._file = file
        self._beat = beat
        self._said = ""
        self._counts_tokens = False
        self._left = 0

    def wait(self) -> None:
        """Before a step."""
        while self._is_due():
            self._beat()
            time.sleep(LOOK_INTERVAL_S)

    def count(self, result: StepResult) -> None:
        """After it."""
        token_ids = columns.unpack_ids(result.token_ids)
        self._left -= len(token_ids) - token_ids.count(NO_TOKEN) if self._counts_tokens else 1

    def _is_due(self) -> bool:
        try:
            said = self._file.read_text()
        except FileNotFoundError:
            said = ""
        if said != self._said:
            self._said = said
            if said:
                _, unit, number = said.split()
                self._counts_tokens, self._left = unit == "tokens", int(number)
        return bool(said) and self._left <= 0
