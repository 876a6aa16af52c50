"""Pythonic (Llama 4, as some templates ask): an answer that is [name(key="value", other=[1, 2]), …].

<|python_start|> may stand before it, <|python_end|> behind it. Calls are passed on one by one, each when it
is complete. They are parsed as Python, of which only literals are let in, and are never run.
"""

import ast
import json
import keyword
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ..grammar_messages import ToolArguments
from ..tools import Tool
from .bare_values import members_of
from .call_reader import CallReader
from .tool_format import CallGrammar, Mark, ToolFormat, UnenforceableTool, literal

START, END = "<|python_start|>", "<|python_end|>"
MOST_CHARS = 1 << 18
MOST_DEPTH = 64
_NAME = re.compile(r"[A-Za-z_][\w.]{0,127}\s*", re.ASCII)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_WORDS = {"true": True, "false": False, "null": None}


class Brackets:
    """From a bracket to the one that closes it, strings of Python between. It ends at what is wrong, too."""

    def __init__(self) -> None:
        self._at = 0
        self._open = ""
        self._quote = ""

    def end(self, text: str) -> int | None:
        """How long it is; None: the end has not come. The text is the same as before, and more."""
        at = self._at
        while at < len(text):
            char = text[at]
            if self._quote:
                if char == "\\":
                    at += 1
                elif char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in "([{":
                self._open += char
            elif char in ")]}":
                if self._open[-1] != _PAIRS[char]:
                    return at
                self._open = self._open[:-1]
            at += 1
            if not self._open or len(self._open) > MOST_DEPTH or at > MOST_CHARS:
                return at
        self._at = at
        return None


class PythonicReader(CallReader):
    openers = (START,)
    _name = ""
    _brackets: Brackets
    """From behind the name of the call at hand."""

    def _begin(self) -> bool:
        rest = self._held.lstrip()
        if not rest:
            return False
        self._state = self._text
        if rest[0] == "[":
            self._raw, self._state = "", self._opened
        return True

    def _opened(self) -> bool:
        if not self._blank_before():
            return False
        if self._held[0] != "[":
            return self._give_up()
        self._use(1)
        self._state = self._call
        return True

    def _call(self) -> bool:
        if not self._blank_before():
            return False
        head = _NAME.match(self._held)
        if head is None:
            return self._give_up()
        if head.end() == len(self._held):
            return False
        name = head[0].rstrip()
        if self._held[head.end()] != "(" or name not in self._tools:
            return self._give_up()
        self._name, self._brackets, self._state = name, Brackets(), self._in_brackets
        self._use(head.end())
        return True

    def _in_brackets(self) -> bool:
        end = self._brackets.end(self._held)
        if end is None:
            return False
        arguments = arguments_of(self._held[:end])
        if arguments is None:
            return self._give_up()
        self._start(self._name)
        self._argue(arguments)
        self._use(end)
        self._end(self._closed)
        return True

    def _closed(self) -> bool:
        rest = self._held.lstrip()
        if not rest:
            return False
        if rest[0] == ",":
            self._raw, self._state = "", self._call
        else:
            self._state = self._behind if rest[0] == "]" else self._text
        if rest[0] in ",]":
            self._use(len(self._held) - len(rest) + 1)
        return True

    def _behind(self) -> bool:
        """Behind the list."""
        if not self._blank_before():
            return False
        if self._held.startswith(END):
            self._use(len(END))
        elif END.startswith(self._held):
            return False
        self._state = self._text
        return True


class Pythonic(ToolFormat):
    """Enforced, values are JSON, which this reads as well."""

    name = "pythonic"
    marks = (START, END)
    bare = "\\["

    def grammar(self, tools: Sequence[ToolArguments], mark: Mark, *, single: bool) -> CallGrammar:
        rules = [
            'calls: "[" call "]"' if single else 'calls: "[" call (", " call)* "]"',
            f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}",
        ]
        values: list[ToolArguments] = []
        for i, tool in enumerate(tools):
            if _NAME.fullmatch(tool.name) is None:
                raise UnenforceableTool(f"the name {tool.name} cannot be written in this format")
            members = members_of(tool)
            rules.append(f'call_{i}: {literal(f"{tool.name}(")} first_{i}_0 ")"')
            for j, (key, schema, required) in enumerate(members):
                if not (key.isascii() and key.isidentifier()) or keyword.iskeyword(key):
                    raise UnenforceableTool(
                        f"parameters of {tool.name}: {key} cannot be written in this format"
                    )
                member = f"{literal(f'{key}=')} args_{len(values)} more_{i}_{j + 1}"
                values.append(ToolArguments(tool.name, schema, key))
                for kind, comma in (("first", ""), ("more", '", " ')):
                    skipped = "" if required else f" | {kind}_{i}_{j + 1}"
                    rules.append(f"{kind}_{i}_{j}: {comma}{member}{skipped}")
            rules += [f'{kind}_{i}_{len(members)}: ""' for kind in ("first", "more")]
        return CallGrammar("\n".join(rules), tuple(values))

    def reader(self, tools: Sequence[Tool], new_id: Callable[[int], str], *, single: bool) -> CallReader:
        return PythonicReader(tools, new_id, single=single)


def arguments_of(call: str) -> str | None:
    """JSON of the named literals in (…); None: it is something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes that escape nothing
            parsed = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args or not isinstance(parsed.func, ast.Name):
            return None
        values = {one.arg: _value(one.value, f"f{call}") for one in parsed.keywords}
        if None in values:
            return None
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, source: str) -> Any:
    """Raises ValueError for what JSON has not."""
    match node:
        case ast.Constant(value=str() as value):
            return _text(value, ast.get_source_segment(source, node) or "")
        case ast.Constant(value=bool() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(one, source) for one in items]
        case ast.Dict(keys=keys, values=values):
            names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
            if not all(isinstance(name, str) for name in names):
                raise ValueError("a key is no text")
            return {name: _value(one, source) for name, one in zip(names, values, strict=True)}
        case ast.Name(id=name) if name in _WORDS:
            return _WORDS[name]
        case _:
            raise ValueError("no literal")


def _text(value: str, written: str) -> str:
    """As JSON has it, where it is written so: its escapes differ a little from Python's."""
    try:
        return str(json.loads(written))
    except ValueError:
        return value
