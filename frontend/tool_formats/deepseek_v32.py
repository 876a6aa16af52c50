"""DeepSeek V3.2 and later, whose marks are tags around a token of their own, here written as |:

<|function_calls>
<|invoke name="get_weather">
<|parameter name="city" string="true">Oslo</|parameter>      string="false": the value is JSON
</|invoke>
</|function_calls>                                           (tool_calls in later models)
"""

import re
from collections.abc import Callable, Sequence

from ..tools import Tool
from .bare_values import MOST_NAME_CHARS, BareValueFormat, BareValueReader
from .tool_format import Mark, literal

DSML = "｜DSML｜"
CALLS, CALLS_END = f"<{DSML}function_calls>", f"</{DSML}function_calls>"
LATER, LATER_END = f"<{DSML}tool_calls>", f"</{DSML}tool_calls>"
INVOKE, INVOKE_END = f"<{DSML}invoke", f"</{DSML}invoke>"
PARAMETER, PARAMETER_END = f"<{DSML}parameter", f"</{DSML}parameter>"
VALUE_ENDS = (PARAMETER_END, PARAMETER, INVOKE_END)
"""The first is the right one."""
_NAMED = re.compile(r'\s*name="([^"]*)"(?:\s+string="(true|false)")?\s*>')


class DeepSeekV32Reader(BareValueReader):
    openers = (CALLS, LATER, INVOKE)
    value_ends = VALUE_ENDS
    padded = False

    def _opened(self) -> bool:
        if self._raw == INVOKE:
            self._state = self._named
            return True
        return self._expect({INVOKE: self._named}, self._give_up)

    def _named(self) -> bool:
        if ">" not in self._held:
            return len(self._held) > MOST_NAME_CHARS and self._give_up()
        head = _NAMED.match(self._held)
        if head is None or head[1] not in self._tools:
            return self._give_up()
        self._use(head.end())
        self._begin_call(head[1])
        return True

    def _member(self) -> bool:
        marks = {PARAMETER: self._keyed, INVOKE_END: self._whole, PARAMETER_END: self._member}
        return self._expect(marks, self._broken)

    def _keyed(self) -> bool:
        if ">" not in self._held:
            return len(self._held) > MOST_NAME_CHARS and self._broken()
        head = _NAMED.match(self._held)
        if head is None:
            return self._broken()
        self._use(head.end())
        self._begin_value(head[1], None if head[2] is None else head[2] == "true")
        return True

    def _closed(self) -> bool:
        marks = {INVOKE: self._named, CALLS_END: self._text, LATER_END: self._text}
        return self._behind_call(marks, self._text, opener=INVOKE)


class DeepSeekV32(BareValueFormat):
    name = "deepseek_v32"
    opener = CALLS
    marks = (DSML,)
    value_ends = VALUE_ENDS

    def reader(
        self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool
    ) -> DeepSeekV32Reader:
        return DeepSeekV32Reader(tools, new_id, single=single)

    def call_list(self, *, single: bool) -> str:
        return "open call close" if single else "open call+ close"

    def call_rule(self, name: str, members: str, mark: Mark) -> str:
        head, end = _tag("", f'invoke name="{name}">\n', mark), _tag("/", "invoke>\n", mark)
        return f"{head} {members} {end}"

    def rules_beside(self, mark: Mark) -> list[str]:
        ends = _tag("", "function_calls>\n", mark), _tag("/", "function_calls>", mark)
        return [f"open: {ends[0]}", f"close: {ends[1]}"]

    def around_value(self, key: str, mark: Mark, *, text: bool) -> tuple[str, str]:
        kind = "true" if text else "false"
        return _tag("", f'parameter name="{key}" string="{kind}">', mark), f"{PARAMETER_END}\n"

    def closed(self, end: str, mark: Mark) -> str:
        return literal(end) if mark(DSML) == literal(DSML) else _tag("/", "parameter>\n", mark)

    def text_rule(self, name: str, end: str, mark: Mark) -> str:
        if mark(DSML) == literal(DSML):
            return super().text_rule(name, end, mark)
        return (
            f'{name}: /(.|\\n)*<\\// {mark(DSML)} "parameter>\\n"'  # the token ends the text, as its only end
        )


def _tag(slash: str, rest: str, mark: Mark) -> str:
    """Lark of a tag, whose rest is what follows the token."""
    return f"{literal('<' + slash)} {mark(DSML)} {literal(rest)}"
