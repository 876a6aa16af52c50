"""DeepSeek V3 and R1, which write arguments into a fence, and V3.1, which does not. Within CALLS … CALLS_END:

CALL function SEPARATOR name        CALL name SEPARATOR {…} CALL_END
```json
{…}
``` CALL_END
"""

import re
from collections.abc import Callable, Sequence

from ..tools import Tool
from .call_reader import CallReader
from .json_scan import JsonValue
from .tool_format import Mark, ToolFormat, literal

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
FENCE = "```"
_KIND = "function"
_HEAD = re.compile(
    rf"\s*([\w.:/-]{{1,128}})\s*{SEPARATOR}\s*(?:([\w.:/-]{{1,128}})\s*)?(?:```(?:json)?\s*)?", re.ASCII
)
_BEGUN = re.compile(r"\s*[\w.:/-]{0,128}\s*(?:<[^{]{0,256})?", re.ASCII)
"""What could still become one."""


class DeepSeekV3Reader(CallReader):
    openers = (CALLS, CALL)

    def _opened(self) -> bool:
        if self._raw == CALL:
            self._state = self._named
            return True
        if not self._blank_before():
            return False
        if self._held.startswith(CALL):
            self._use(len(CALL))
            self._state = self._named
            return True
        return not CALL.startswith(self._held) and self._give_up()

    def _named(self) -> bool:
        """Before the arguments."""
        at = self._held.find("{")
        if at < 0:
            return _BEGUN.fullmatch(self._held) is None and self._give_up()
        head = _HEAD.fullmatch(self._held[:at])
        name = "" if head is None else head[2] or head[1]
        if name not in self._tools or (head is not None and head[2] and head[1] != _KIND):
            return self._give_up()
        self._start(name)
        self._use(at)
        self._value, self._state = JsonValue(), self._in_arguments
        return True

    def _closed(self) -> bool:
        marks = {FENCE: self._closed, CALL_END: self._closed, CALL: self._named, CALLS_END: self._text}
        return self._behind_call(marks, self._text, opener=CALL)


class DeepSeekV3(ToolFormat):
    name = "deepseek_v3"
    opener = CALLS
    marks = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

    def __init__(self, *, fenced: bool) -> None:
        """`fenced`: the older kind is the one that is enforced; both are read."""
        self._fenced = fenced

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        return DeepSeekV3Reader(tools, new_id, single=single)

    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        more = "" if single else ' ("\\n"? call)*'
        rules = [
            f"calls: {mark(CALLS)} call{more} {mark(CALLS_END)}",
            f"call: {mark(CALL)} ({' | '.join(f'call_{i}' for i in range(len(names)))}) {mark(CALL_END)}",
        ]
        for i, name in enumerate(names):
            plain = f"{literal(name)} {mark(SEPARATOR)} args_{i}"
            fence = literal(f"{name}\n{FENCE}json\n"), literal(f"\n{FENCE}")
            fenced = f"{literal(_KIND)} {mark(SEPARATOR)} {fence[0]} args_{i} {fence[1]}"
            rules.append(f"call_{i}: {fenced if self._fenced else plain}")
        return "\n".join(rules)
