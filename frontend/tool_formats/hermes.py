"""Hermes, Qwen 2.5 and 3, the bundled model: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""

from collections.abc import Callable, Sequence

from ..tools import Tool
from .call_reader import CallReader
from .json_scan import CallObject
from .tool_format import Mark, ToolFormat, alternatives

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesReader(CallReader):
    openers = (OPEN,)

    def _opened(self) -> bool:
        self._object, self._state = CallObject(), self._in_object
        return True

    def _closed(self) -> bool:
        """A close that is missing is not missed."""
        if not self._blank_before():
            return False
        if self._held.startswith(CLOSE):
            self._use(len(CLOSE))
        elif CLOSE.startswith(self._held):
            return False
        self._state = self._text
        return True


class Hermes(ToolFormat):
    name = "hermes"
    opener = OPEN
    marks = (OPEN, CLOSE)

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        return HermesReader(tools, new_id, single=single)

    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        more = "" if single else " (NEWLINE? tagged)*"
        return "\n".join(
            [
                f"calls: tagged{more}",
                f"tagged: {mark(OPEN)} NEWLINE? call NEWLINE? {mark(CLOSE)}",
                r'NEWLINE: "\n"',
                alternatives(names, "arguments"),
            ]
        )
