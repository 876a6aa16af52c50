"""ToolFormat: one way in which models write their calls: how it is read, and how it is enforced.

Enforced are calls as Lark rules (llguidance): `calls` is what an answer of nothing but calls looks like;
`args_0`, `args_1` … are rules for JSON, of the tools' arguments, which whoever uses them adds.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from ..grammar_messages import ToolArguments
from ..parts import Reader
from ..tools import Tool

Mark = Callable[[str], str]
"""A marker of a format as Lark: the token that it is in the vocabulary, or its text."""


class UnenforceableTool(Exception):
    """A format cannot make sure of a tool's arguments; says of which, and why."""


class CallGrammar(NamedTuple):
    lark: str
    arguments: tuple[ToolArguments, ...]
    """What `args_0` and its like stand for."""


class ToolFormat(ABC):
    """Without state: the same for all answers."""

    name: ClassVar[str]
    marks: ClassVar[tuple[str, ...]] = ()
    """Tokens that belong to the text of an answer with calls, even if they are special."""
    short_ids: ClassVar[bool] = False
    opener: ClassVar[str] = ""
    """The mark with which calls begin."""
    bare: ClassVar[str] = ""
    """Where they need none: the character, as a regex, with which an answer that is none may not begin."""

    @abstractmethod
    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> Reader:
        """Of one answer. `new_id` gives the id of the call with an index."""

    def grammar(self, tools: Sequence[ToolArguments], mark: Mark, *, single: bool) -> CallGrammar:
        """`calls`, which is one call with `single`. Raises UnenforceableTool."""
        return CallGrammar(self.rules([tool.name for tool in tools], mark, single=single), tuple(tools))

    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        """The same where `args_i` stands for all arguments of a tool."""
        raise NotImplementedError


class FramingFormat(ToolFormat):
    """One in which whole answers are framed, text and reasoning as well as calls."""

    @abstractmethod
    def whole_reader(
        self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool, show: bool, going_on: bool
    ) -> Reader:
        """Of one answer, also if there are no tools. `show`: the reasoning is of interest. `going_on`: it
        begins within a text that the client began."""

    thought_end: ClassVar[str]
    """The mark that ends the reasoning."""

    @abstractmethod
    def before_answer(self, mark: Mark, budget: int | None) -> tuple[str, str]:
        """Lark: the reasoning that may stand before everything else, and its rules. See thought_rule."""

    @abstractmethod
    def before_text(self, mark: Mark) -> str:
        """Lark: what stands before the text."""


def literal(text: str) -> str:
    """Of Lark."""
    return json.dumps(text)


def thought_rule(closed: str, budget: int | None = None) -> str:
    """The rule `thought`: whatever comes before the mark, which is Lark, and the mark. With a budget, the
    mark comes after so many tokens at the latest; it has to be a token then."""
    if closed.startswith('"'):
        assert budget is None, "plan_reading has seen to that"
        return f"thought[lazy]: /(.|\\n)*/ {closed}\n"
    # a token by its id is no part of a terminal, nor does free text match it
    if budget is None:
        return f"thought: some_thought? {closed}\nsome_thought: /(.|\\n)+/\n"
    if not budget:
        return f"thought: {closed}\n"
    return f"thought: some_thought? {closed}\nsome_thought[max_tokens={budget}]: /(.|\\n)+/\n"


def alternatives(names: Sequence[str], key: str) -> str:
    """Rules `call_i` for {"name": …, key: …}, and `call` for any of them."""
    rules = []
    for i, name in enumerate(names):
        head = literal(f'{{"name": {json.dumps(name)}, "{key}": ')
        rules.append(f'call_{i}: {head} args_{i} "}}"')
    return "\n".join([f"call: {' | '.join(f'call_{i}' for i in range(len(names)))}", *rules])
