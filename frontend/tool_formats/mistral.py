"""Mistral: [TOOL_CALLS] and a list of {"name": …, "arguments": {…}}; newer: [TOOL_CALLS]name[ARGS]{…}."""

import re
from collections.abc import Callable, Sequence

from ..tools import Tool
from .call_reader import CallReader
from .json_scan import CallObject, JsonValue
from .tool_format import Mark, ToolFormat, alternatives, literal

OPEN, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_HEAD = re.compile(r"([\w.:/-]{1,128})\s*(?:\[CALL_ID\][^\[\]{]{0,64})?(?:\[ARGS\])?\s*", re.ASCII)
_BEGUN = re.compile(r"[\w.:/-]{1,128}\s*(?:\[[^{]{0,128})?", re.ASCII)
"""What could still become one."""


class MistralReader(CallReader):
    openers = (OPEN,)
    _listed = False
    """The call at hand is one of a list."""

    def _opened(self) -> bool:
        if not self._blank_before():
            return False
        self._listed = self._held[0] == "["
        if self._listed:
            self._use(1)
            self._state = self._element
        elif self._held[0] == "{":
            self._state = self._element
        else:
            self._state = self._named
        return True

    def _element(self) -> bool:
        if not self._blank_before():
            return False
        self._object, self._state = CallObject(), self._in_object
        return True

    def _named(self) -> bool:
        """Before the arguments of a call that is told by its name."""
        at = self._held.find("{")
        if at < 0:
            return _BEGUN.fullmatch(self._held) is None and self._give_up()
        head = _HEAD.fullmatch(self._held[:at])
        if head is None or head[1] not in self._tools:
            return self._give_up()
        self._start(head[1])
        self._use(at)
        self._value, self._state = JsonValue(), self._in_arguments
        return True

    def _closed(self) -> bool:
        rest = self._held.lstrip()
        if not rest:
            return False
        self._state = self._text
        if self._listed and rest[0] in ",]":
            if rest[0] == ",":
                self._raw, self._state = "", self._element
            self._use(len(self._held) - len(rest) + 1)
        return True


class Mistral(ToolFormat):
    name = "mistral"
    opener = OPEN
    marks = (OPEN, ID, ARGS)
    short_ids = True

    def __init__(self, *, named: bool) -> None:
        """`named`: the newer kind is the one that is enforced; both are read."""
        self._named = named

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        return MistralReader(tools, new_id, single=single)

    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        if not self._named:
            more = "" if single else ' (", " call)*'
            return f'calls: {mark(OPEN)} " "? "[" call{more} "]"\n{alternatives(names, "arguments")}'
        some = " | ".join(f"call_{i}" for i in range(len(names)))
        rules = [f"calls: call{'' if single else '+'}", f"call: {mark(OPEN)} ({some})"]
        rules += [f"call_{i}: {literal(name)} {mark(ARGS)} args_{i}" for i, name in enumerate(names)]
        return "\n".join(rules)
