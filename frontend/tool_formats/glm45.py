"""GLM-4.5 and later: <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value>…</tool_call>.

Line breaks between the marks come and go with the model's version.
"""

from collections.abc import Callable, Sequence

from ..tools import Tool
from .bare_values import MOST_NAME_CHARS, BareValueFormat, BareValueReader
from .hermes import CLOSE, OPEN
from .tool_format import Mark, literal

KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"
VALUE_ENDS = (VALUE_END, KEY, CLOSE)
"""The first is the right one."""


class Glm45Reader(BareValueReader):
    openers = (OPEN,)
    value_ends = VALUE_ENDS
    padded = False
    _name = ""
    _key = ""

    def _opened(self) -> bool:
        """The name goes on to the next mark, or to the end of the line."""
        if not self._blank_before():
            return False
        name, bracket, _ = self._held.partition("<")
        self._name = name.strip()
        if not bracket and "\n" not in name:
            return not any(tool.startswith(self._name) for tool in self._tools) and self._give_up()
        if self._name not in self._tools:
            return self._give_up()
        self._use(len(name))
        self._state = self._named
        return True

    def _named(self) -> bool:
        return self._expect({KEY: self._first_key, CLOSE: self._no_arguments}, self._give_up)

    def _first_key(self) -> bool:
        self._begin_call(self._name)
        self._state = self._keyed
        return True

    def _no_arguments(self) -> bool:
        self._begin_call(self._name)
        return self._whole()

    def _member(self) -> bool:
        marks = {KEY: self._keyed, CLOSE: self._whole, VALUE_END: self._member}
        return self._expect(marks, self._broken)

    def _keyed(self) -> bool:
        key, end, _ = self._held.partition(KEY_END)
        if not end:
            return len(self._held) > MOST_NAME_CHARS and self._broken()
        self._use(len(key) + len(end))
        self._key = key.strip()
        self._state = self._between
        return True

    def _between(self) -> bool:
        """State: behind a key."""
        return self._expect({VALUE: self._valued}, self._broken)

    def _valued(self) -> bool:
        self._begin_value(self._key)
        return True

    def _closed(self) -> bool:
        self._state = self._text
        return True


class Glm45(BareValueFormat):
    name = "glm45"
    opener = OPEN
    marks = (OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END)
    value_ends = VALUE_ENDS

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> Glm45Reader:
        return Glm45Reader(tools, new_id, single=single)

    def call_list(self, *, single: bool) -> str:
        return "call" if single else r'call ("\n"? call)*'

    def call_rule(self, name: str, members: str, mark: Mark) -> str:
        return f'{mark(OPEN)} {literal(name)} "\\n"? {members} {mark(CLOSE)}'

    def around_value(self, key: str, mark: Mark, *, text: bool) -> tuple[str, str]:
        return f'{mark(KEY)} {literal(key)} {mark(KEY_END)} "\\n"? {mark(VALUE)}', VALUE_END
