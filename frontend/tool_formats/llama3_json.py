"""Llama 3.1 and later: an answer that is {"name": …, "parameters": {…}}, or several of them with ; between.

<|python_tag|> may stand before them and opens calls behind a text, too. So does <|python_start|> of Llama 4,
with <|python_end|> before the calls or behind them.
"""

from collections.abc import Callable, Sequence

from ..tools import Tool
from .call_reader import CallReader
from .json_scan import CallObject
from .tool_format import Mark, ToolFormat, alternatives

TAG, START, END = "<|python_tag|>", "<|python_start|>", "<|python_end|>"
SEPARATORS = ";,"


class Llama3JsonReader(CallReader):
    openers = (TAG, START)

    def _begin(self) -> bool:
        rest = self._held.lstrip()
        if not rest:
            return False
        if rest[0] == "{":
            self._raw = ""
            self._state = self._opened
        else:
            self._state = self._text
        return True

    def _opened(self) -> bool:
        if not self._blank_before():
            return False
        if self._held.startswith(END):
            self._use(len(END))
            return True
        if END.startswith(self._held):
            return False
        if self._held[0] != "{":
            return self._give_up()
        self._object, self._state = CallObject(), self._in_object
        return True

    def _closed(self) -> bool:
        rest = self._held.lstrip()
        if not rest:
            return False
        if rest[0] == "{" or rest[0] in SEPARATORS:
            self._raw = ""
            self._use(len(self._held) - len(rest) + (rest[0] != "{"))
            self._state = self._opened
        elif rest.startswith(END):
            self._use(len(self._held) - len(rest) + len(END))
            self._state = self._text
        elif END.startswith(rest):
            return False
        else:
            self._state = self._text
        return True


class Llama3Json(ToolFormat):
    name = "llama3_json"
    marks = (TAG, START, END)
    bare = "{"

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        return Llama3JsonReader(tools, new_id, single=single)

    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        more = "" if single else ' ("; " call)*'
        return f"calls: call{more}\n{alternatives(names, 'parameters')}"
