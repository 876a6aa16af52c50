"""Qwen3-Coder: <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>."""

from collections.abc import Callable, Sequence

from ..tools import Tool
from .bare_values import MOST_NAME_CHARS, BareValueFormat, BareValueReader
from .hermes import CLOSE, OPEN
from .tool_format import Mark, literal

FUNCTION, PARAMETER = "<function=", "<parameter="
FUNCTION_END, PARAMETER_END = "</function>", "</parameter>"
VALUE_ENDS = (PARAMETER_END, PARAMETER, FUNCTION_END)
"""The first is the right one."""


class Qwen3CoderReader(BareValueReader):
    openers = (OPEN, FUNCTION)
    value_ends = VALUE_ENDS
    padded = True

    def _opened(self) -> bool:
        if self._raw == FUNCTION:
            self._state = self._named
            return True
        return self._expect({FUNCTION: self._named}, self._give_up)

    def _named(self) -> bool:
        name = self._until_bracket()
        if name is None:
            return len(self._held) > MOST_NAME_CHARS and self._give_up()
        if name not in self._tools:
            return self._give_up()
        self._use(len(name) + 1)
        self._begin_call(name)
        return True

    def _member(self) -> bool:
        marks = {PARAMETER: self._keyed, FUNCTION_END: self._whole, PARAMETER_END: self._member}
        return self._expect(marks, self._broken)

    def _keyed(self) -> bool:
        key = self._until_bracket()
        if key is None:
            return len(self._held) > MOST_NAME_CHARS and self._broken()
        self._use(len(key) + 1)
        self._begin_value(key)
        return True

    def _closed(self) -> bool:
        return self._expect({CLOSE: self._text}, self._go_on)

    def _go_on(self) -> bool:
        self._state = self._text
        return True

    def _until_bracket(self) -> str | None:
        name, bracket, _ = self._held.partition(">")
        return name if bracket else None


class Qwen3Coder(BareValueFormat):
    name = "qwen3_coder"
    opener = OPEN
    marks = (OPEN, CLOSE)
    value_ends = VALUE_ENDS

    def reader(
        self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool
    ) -> Qwen3CoderReader:
        return Qwen3CoderReader(tools, new_id, single=single)

    def call_list(self, *, single: bool) -> str:
        return "call" if single else r'call ("\n"? call)*'

    def call_rule(self, name: str, members: str, mark: Mark) -> str:
        head, end = literal(f"\n{FUNCTION}{name}>\n"), literal(f"{FUNCTION_END}\n")
        return f"{mark(OPEN)} {head} {members} {end} {mark(CLOSE)}"

    def around_value(self, key: str, mark: Mark, *, text: bool) -> tuple[str, str]:
        return literal(f"{PARAMETER}{key}>\n"), f"\n{PARAMETER_END}\n"
