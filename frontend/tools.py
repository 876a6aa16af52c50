"""Tools as any endpoint's clients name them: which there are, and which must, may or must not be called.

Endpoints translate their own shapes into `ToolUse`; the rest of the frontend knows only this one.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct, field

from protocol.errors import InvalidRequest

NAME = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
MOST_TOOLS = 256
MOST_DEPTH = 100
"""Of the objects and lists in a schema; the parsers behind us have limits of about that size."""
_ID_CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def no_parameters() -> dict[str, Any]:
    """The schema of a tool that takes none."""
    return {"type": "object", "properties": {}}


class Tool(Struct, frozen=True):
    """`parameters` is a JSON Schema of the arguments' object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=no_parameters)
    strict: bool = False
    """Arguments must follow the schema even where the model calls it of its own accord."""

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it."""
        described = {} if self.description is None else {"description": self.description}
        return {
            "type": "function",
            "function": {"name": self.name, **described, "parameters": self.parameters},
        }


def check_num_tools(tools: Sequence[object], field: str) -> None:
    """Before anything is made of them. Raises InvalidRequest."""
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(f"{field}: at most {MOST_TOOLS}, got {len(tools)}", param=field)


class ToolUse(Struct, frozen=True, kw_only=True):
    """What a request says about tools."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    allowed: tuple[str, ...] | None = None
    """The names that may be called; None: all. With "required" and one name, that one is called."""
    parallel: bool = True
    """Several calls in one answer."""

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that the answer may call."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.allowed is None or tool.name in self.allowed)

    @property
    def shown(self) -> tuple[Tool, ...]:
        """Those that the model is told of: none if it may not call them."""
        return () if self.choice == "none" else self.tools

    @property
    def named(self) -> bool:
        """One certain tool is to be called."""
        return self.choice == "required" and self.allowed is not None and len(self.allowed) == 1

    def check(self, tools_field: str, choice_field: str) -> None:
        """Names, and what refers to them. Raises InvalidRequest."""
        check_num_tools(self.tools, tools_field)
        names = [tool.name for tool in self.tools]
        for name in names:
            if NAME.fullmatch(name) is None:
                rule = "a name is 1 … 128 letters, digits, or _ - . : /"
                raise InvalidRequest(f"{tools_field}: {name[:160]!r}: {rule}", param=tools_field)
        for tool in self.tools:
            if _depth(tool.parameters) > MOST_DEPTH:
                what = f"{tools_field}: the parameters of {tool.name} are nested deeper than {MOST_DEPTH}"
                raise InvalidRequest(what, param=tools_field)
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise InvalidRequest(f"{tools_field}: {twice[0]!r} is there twice", param=tools_field)
        for name in self.allowed or ():
            if name not in names:
                known = ", ".join(names) or "there are none"
                what = f"{choice_field}: {name!r} is none of the tools: {known}"
                raise InvalidRequest(what, param=choice_field)
        if self.choice == "required" and not self.callable:
            raise InvalidRequest(f"{choice_field}: there is no tool that could be called", param=choice_field)


class OfferedTools(NamedTuple):
    """What comes of a request's tools where kinds that only others can run are skipped."""

    use: ToolUse
    skipped: list[str]
    """The types of those that the model is not told of."""


class CallIds:
    """Ids of the calls of one answer: the same for the same answer, by whichever process it is written."""

    def __init__(self, response_id: str, choice: int, *, short: bool) -> None:
        """`short`: nine letters and digits, which is all that the templates of Mistral take."""
        self._seed = f"{response_id}/{choice}/"
        self._short = short

    def __call__(self, index: int) -> str:
        return short_id(f"{self._seed}{index}") if self._short else f"call_{_id(f'{self._seed}{index}', 24)}"


def short_id(text: str) -> str:
    """Nine letters and digits that stand for any text."""
    return _id(text, 9)


def _depth(document: object) -> int:
    """Of a JSON document; up to one more than the most, so that it is found out in bounded time."""
    level, depth = [document], 0
    while level and depth <= MOST_DEPTH:
        inner = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        ]
        level, depth = [child for children in inner for child in children], depth + 1
    return depth


def _id(text: str, length: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "little")
    chars = []
    for _ in range(length):
        number, char = divmod(number, len(_ID_CHARS))
        chars.append(_ID_CHARS[char])
    return "".join(chars)
