"""Harmony, of gpt-oss: the whole answer is messages in channels, of which one kind is calls.

<|channel|>analysis<|message|>…<|end|>                                                  reasoning
<|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>
<|start|>assistant<|channel|>final<|message|>…<|return|>                                text

So is commentary to nobody. The prompt ends with <|start|>assistant; <|call|> and <|return|> end the answer.
"""

import re
from collections.abc import Callable, Sequence

from ..parts import Part, ReasoningPart
from ..tools import Tool
from .call_reader import CallReader, tail_of
from .json_scan import JsonValue
from .tool_format import FramingFormat, Mark, literal, thought_rule

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ENDS = (END, CALL, RETURN, START, CHANNEL)
"""Of a message; the last two begin another without an end."""
ROLE, ANALYSIS, COMMENTARY, FINAL = "assistant", "analysis", "commentary", "final"
_TO = re.compile(r"\bto=functions\.([\w.:/-]{1,128})", re.ASCII)
_CHANNEL = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
MOST_HEADER_CHARS = 512


class HarmonyReader(CallReader):
    """Not a reader of calls only: it also says what is reasoning."""

    def __init__(
        self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool, show: bool, going_on: bool
    ) -> None:
        """`show`: the reasoning is of interest. `going_on`: the answer begins within a text."""
        super().__init__(tools, new_id, single=single)
        self._show = show
        self._num_thoughts = 0
        if going_on:
            self._state = self._text

    def _begin(self) -> bool:
        """State: before a header. What looks like none is text."""
        rest = self._held.lstrip()
        if not rest:
            return False
        heads = (START, CHANNEL, "to=", ROLE)
        if not any(rest.startswith(head) for head in heads):
            if any(head.startswith(rest) for head in heads):
                return False
            self._state = self._text
            return True
        self._raw, self._state = "", self._header
        return True

    def _header(self) -> bool:
        head, message, _ = self._held.partition(MESSAGE)
        if not message:
            return len(self._held) > MOST_HEADER_CHARS and self._give_up()
        self._use(len(head) + len(message))
        to, channel = _TO.search(head), _CHANNEL.search(head)
        if to is not None and to[1] in self._tools:
            self._start(to[1])
            self._value, self._state = JsonValue(), self._in_arguments
            return True
        if "to=" in head:  # nobody that we know
            return self._give_up()
        self._raw = None
        self.reasoning = channel is not None and channel[1] == ANALYSIS
        if self.reasoning and self._num_thoughts:
            self._think("\n")
        self._num_thoughts += self.reasoning
        self._state = self._thought if self.reasoning else self._text
        return True

    def _thought(self) -> bool:
        return self._body(self._think)

    def _text(self) -> bool:
        return self._body(self._say)

    def _body(self, tell: Callable[[str], None]) -> bool:
        """State: in a message, up to its end."""
        found = [(at, mark) for mark in ENDS if (at := self._held.find(mark)) >= 0]
        if not found:
            at = tail_of(self._held, ENDS)
            tell(self._held[:at])
            self._held = self._held[at:]
            return False
        at, mark = min(found)
        tell(self._held[:at])
        self._held = self._held[at + len(mark) * (mark in (END, CALL, RETURN)) :]
        self.reasoning = False
        self._state = self._begin
        return True

    def _opened(self) -> bool:
        return self._header()

    def _closed(self) -> bool:
        """State: behind arguments."""
        return self._behind_call({CALL: self._begin, END: self._begin}, self._begin)

    def _think(self, text: str) -> None:
        if text and self._show:
            self._out.append(ReasoningPart(text))

    def finish(self) -> Sequence[Part]:
        if self.reasoning:
            self._think(self._held)
            self._held = ""
        return super().finish()


class Harmony(FramingFormat):
    name = "openai"
    marks = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL)
    thought_end = END

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> HarmonyReader:
        return self.whole_reader(tools, new_id, single=single, show=True, going_on=False)

    def whole_reader(
        self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool, show: bool, going_on: bool
    ) -> HarmonyReader:
        return HarmonyReader(tools, new_id, single=single, show=show, going_on=going_on)

    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        """One call: <|call|>, an end of sequence, follows by itself."""
        some = " | ".join(f"call_{i}" for i in range(len(names)))
        head = f"{mark(CHANNEL)} {literal(f'{COMMENTARY} to=functions.')}"
        rules = [f"calls: {head} ({some})"]
        for i, name in enumerate(names):
            rest = f'" " {mark(CONSTRAIN)} "json" {mark(MESSAGE)}'
            rules.append(f"call_{i}: {literal(name)} {rest} args_{i}")
        return "\n".join(rules)

    def before_text(self, mark: Mark) -> str:
        return f'{mark(CHANNEL)} "{FINAL}" {mark(MESSAGE)}'

    def before_answer(self, mark: Mark, budget: int | None) -> tuple[str, str]:
        again = f'{mark(START)} "{ROLE}"'
        lead = f'({mark(CHANNEL)} "{ANALYSIS}" {mark(MESSAGE)} thought {again})? '
        return lead, thought_rule(mark(END), budget)
