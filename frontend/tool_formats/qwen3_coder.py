"""Qwen3-Coder: <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>.

Values are bare: text where the schema says that the argument is one, else JSON if they can be read as such.
Texts are passed on while they are written.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..tools import Tool
from .call_reader import CallReader, State, tail_of
from .hermes import CLOSE, OPEN
from .tool_format import ToolFormat

FUNCTION, PARAMETER = "<function=", "<parameter="
FUNCTION_END, PARAMETER_END = "</function>", "</parameter>"
VALUE_ENDS = (PARAMETER_END, PARAMETER, FUNCTION_END)
"""The first is the right one."""
VALUE_TAILS = tuple(f"\n{mark}" for mark in VALUE_ENDS) + VALUE_ENDS
_LONGEST_NAME = 256
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}


class Qwen3CoderReader(CallReader):
    openers = (OPEN, FUNCTION)
    _schemas: dict[str, Any]
    """Of the call's arguments."""
    _num_members = 0
    _kinds: frozenset[str] = frozenset()
    """Of the value at hand."""
    _text_begun = False

    def _opened(self) -> bool:
        if self._raw == FUNCTION:
            self._state = self._named
            return True
        return self._expect({FUNCTION: self._named}, self._give_up)

    def _named(self) -> bool:
        name = self._until_bracket()
        if name is None:
            return len(self._held) > _LONGEST_NAME and self._give_up()
        if name not in self._tools:
            return self._give_up()
        self._use(len(name) + 1)
        self._start(name)
        properties = self._tools[name].parameters.get("properties")
        self._schemas = properties if isinstance(properties, dict) else {}
        self._num_members = 0
        self._state = self._member
        return True

    def _member(self) -> bool:
        marks = {PARAMETER: self._keyed, FUNCTION_END: self._whole, PARAMETER_END: self._member}
        return self._expect(marks, self._broken)

    def _keyed(self) -> bool:
        key = self._until_bracket()
        if key is None:
            return len(self._held) > _LONGEST_NAME and self._broken()
        self._use(len(key) + 1)
        self._argue(f"{', ' if self._num_members else '{'}{_json(key)}: ")
        self._num_members += 1
        self._kinds = kinds_of(self._schemas.get(key))
        self._text_begun = False
        self._state = self._text_value if self._kinds == {"string"} else self._other_value
        return True

    def _text_value(self) -> bool:
        if not self._text_begun:
            if not self._held:
                return False
            self._use(self._held[0] == "\n")
            self._text_begun = True
            self._argue('"')
        end = self._value_end()
        sure = self._held[: tail_of(self._held, VALUE_TAILS)] if end is None else self._held[:end]
        self._held = self._held[len(sure) :]
        self._argue(_json(sure if end is None else sure.removesuffix("\n"))[1:-1])
        if end is None:
            return False
        self._argue('"')
        self._state = self._member
        return True

    def _other_value(self) -> bool:
        end = self._value_end()
        if end is None:
            return False
        text = self._held[:end].strip()
        as_text = self._kinds == {"string", "null"} and text.lower() not in _WORDS
        self._argue(_json(text) if as_text else _json_of(text))
        self._held = self._held[end:]
        self._state = self._member
        return True

    def _whole(self) -> bool:
        """The call is complete."""
        self._argue("}" if self._num_members else "{}")
        self._end(self._closed)
        return True

    def _broken(self) -> bool:
        """Something else stands in the call: it ends here."""
        self._argue("}" if self._num_members else "{}")
        self._end(self._text)
        return True

    def _closed(self) -> bool:
        return self._expect({CLOSE: self._text}, self._go_on)

    def _go_on(self) -> bool:
        self._state = self._text
        return True

    # ── for the states ──────────────────────────────────────────────────────────────────────────

    def _expect(self, states: dict[str, State], otherwise: State) -> bool:
        """Which of these comes next, behind blanks."""
        if not self._blank_before():
            return False
        for mark, state in states.items():
            if self._held.startswith(mark):
                self._use(len(mark))
                self._state = state
                return True
        return not any(mark.startswith(self._held) for mark in states) and otherwise()

    def _until_bracket(self) -> str | None:
        name, bracket, _ = self._held.partition(">")
        return name if bracket else None

    def _value_end(self) -> int | None:
        ends = [at for mark in VALUE_ENDS if (at := self._held.find(mark)) >= 0]
        return min(ends, default=None)


class Qwen3Coder(ToolFormat):
    name = "qwen3_coder"
    marks = (OPEN, CLOSE)

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        return Qwen3CoderReader(tools, new_id, single=single)


def kinds_of(schema: Any) -> frozenset[str]:
    """Which types of JSON a schema speaks of; none: it does not say."""
    if not isinstance(schema, dict):
        return frozenset()
    given, enum = schema.get("type"), schema.get("enum")
    kinds = {given} if isinstance(given, str) else {one for one in _listed(given) if isinstance(one, str)}
    for name in ("anyOf", "oneOf"):
        kinds.update(*(kinds_of(one) for one in _listed(schema.get(name))))
    if not kinds and enum and all(isinstance(one, str) for one in _listed(enum)):
        kinds = {"string"}
    return frozenset(kinds)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _json_of(text: str) -> str:
    """What it says as JSON or as Python's words; otherwise it is a text."""
    try:
        return _json(json.loads(_WORDS.get(text.lower(), text)))
    except (ValueError, RecursionError):
        return _json(text)
