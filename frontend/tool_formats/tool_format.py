"""ToolFormat: one way in which models write their calls: how it is read, and how it is enforced.

Enforced are calls as Lark rules (llguidance): `calls` is what an answer of nothing but calls looks like;
`args_0`, `args_1` … are the rules of the tools' arguments, which whoever uses them adds.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from ..tools import Tool
from .call_reader import CallReader

Mark = Callable[[str], str]
"""A marker of a format as Lark: the token that it is in the vocabulary, or its text."""


class ToolFormat(ABC):
    """Without state: the same for all answers."""

    name: ClassVar[str]
    marks: ClassVar[tuple[str, ...]] = ()
    """Tokens that belong to the text of an answer with calls, even if they are special."""
    short_ids: ClassVar[bool] = False

    @abstractmethod
    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        """Of one answer. `new_id` gives the id of the call with an index."""


class EnforceableFormat(ToolFormat):
    """One that a grammar can be written for."""

    opener: ClassVar[str] = ""
    """The mark with which calls begin."""
    bare: ClassVar[str] = ""
    """Where they need none: the character with which an answer that is none may not begin."""

    @abstractmethod
    def rules(self, names: Sequence[str], mark: Mark, *, single: bool) -> str:
        """`calls`, which is one call with `single`."""


def literal(text: str) -> str:
    """Of Lark."""
    return json.dumps(text)


def alternatives(names: Sequence[str], key: str) -> str:
    """Rules `call_i` for {"name": …, key: …}, and `call` for any of them."""
    rules = []
    for i, name in enumerate(names):
        head = literal(f'{{"name": {json.dumps(name)}, "{key}": ')
        rules.append(f'call_{i}: {head} args_{i} "}}"')
    return "\n".join([f"call: {' | '.join(f'call_{i}' for i in range(len(names)))}", *rules])
