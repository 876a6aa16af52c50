"""Calls whose arguments are written one by one, between marks, as bare values: what these formats share.

    mark key mark value mark        Oslo        is "Oslo" where the schema says that the argument is a text
                                    [1, {}]     is JSON where it says something else, or nothing

Texts are passed on while they are written. Enforced, too, an argument is text up to its mark, or JSON.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from ..grammar_messages import ToolArguments
from .call_reader import CallReader, State, tail_of
from .tool_format import CallGrammar, Mark, ToolFormat, UnenforceableTool, literal

MOST_NAME_CHARS = 256
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
_TEXT, _NULL_OR_TEXT = frozenset({"string"}), frozenset({"string", "null"})
_TEXT_RULES = ("pattern", "minLength", "maxLength", "format")
"""Keywords for texts that are not looked at here."""


class BareValueReader(CallReader):
    """Subclasses say what the marks are, and where keys begin."""

    value_ends: ClassVar[tuple[str, ...]]
    """Marks that end a value."""
    padded: ClassVar[bool]
    """A line break behind the mark before a value, and one before the mark behind it, are none of its own."""
    _schemas: dict[str, Any]
    """Of the call's arguments."""
    _num_members = 0
    _kinds: frozenset[str] = frozenset()
    """Of the value at hand."""
    _text_begun = False

    @abstractmethod
    def _member(self) -> bool:
        """State: before the next argument, or the end of the call."""

    def _begin_call(self, name: str) -> None:
        self._start(name)
        properties = self._tools[name].parameters.get("properties")
        self._schemas = properties if isinstance(properties, dict) else {}
        self._num_members = 0
        self._state = self._member

    def _begin_value(self, key: str, is_text: bool | None = None) -> None:
        """`is_text`: if the model says so; then the schema only says whether the text null means null."""
        self._argue(f"{', ' if self._num_members else '{'}{_json(key)}: ")
        self._num_members += 1
        self._kinds = kinds_of(self._schemas.get(key))
        if is_text is not None and not (is_text and self._kinds == _NULL_OR_TEXT):
            self._kinds = _TEXT if is_text else frozenset()
        self._text_begun = False
        self._state = self._text_value if self._kinds == _TEXT else self._other_value

    def _text_value(self) -> bool:
        if not self._text_begun:
            if not self._held:
                return False
            self._use(self.padded and self._held[0] == "\n")
            self._text_begun = True
            self._argue('"')
        end = self._value_end()
        tails = tuple(f"\n{mark}" for mark in self.value_ends) if self.padded else ()
        sure = self._held[: tail_of(self._held, tails + self.value_ends)] if end is None else self._held[:end]
        self._held = self._held[len(sure) :]
        self._argue(_json(sure if end is None or not self.padded else sure.removesuffix("\n"))[1:-1])
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
        as_text = self._kinds == _NULL_OR_TEXT and text.lower() not in _WORDS
        self._argue(_json(text) if as_text else _json_of(text))
        self._held = self._held[end:]
        self._state = self._member
        return True

    def _whole(self) -> bool:
        """State: the call is complete."""
        self._argue("}" if self._num_members else "{}")
        self._end(self._closed)
        return True

    def _broken(self) -> bool:
        """State: something else stands in the call, which ends here."""
        self._argue("}" if self._num_members else "{}")
        self._end(self._text)
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

    def _value_end(self) -> int | None:
        ends = [at for mark in self.value_ends if (at := self._held.find(mark)) >= 0]
        return min(ends, default=None)


class BareValueFormat(ToolFormat):
    """`value_ends` as its reader has them; texts that hold one are not written when they are enforced."""

    value_ends: ClassVar[tuple[str, ...]]

    @abstractmethod
    def call_rule(self, name: str, members: str, mark: Mark) -> str:
        """Lark: the body of a rule for one call; `members` stands for all arguments."""

    @abstractmethod
    def around_value(self, key: str, mark: Mark, *, text: bool) -> tuple[str, str]:
        """Lark: what stands before a value (`text`: it is one, and not JSON); and the mark, or the text, that
        ends it."""

    def closed(self, end: str, mark: Mark) -> str:
        """Lark: that end."""
        return mark(end)

    def text_rule(self, name: str, end: str, mark: Mark) -> str:
        """Lark: the rule for any text up to that end."""
        if mark(end) == literal(end):
            return f"{name}[suffix={literal(end)}]: BARE"
        return f"{name}: SOME? {mark(end)}"

    def rules_beside(self, mark: Mark) -> list[str]:
        """Lark: more that `call_list` is made of."""
        return []

    @abstractmethod
    def call_list(self, *, single: bool) -> str:
        """Lark: the body of `calls`, made of `call`."""

    def grammar(self, tools: Sequence[ToolArguments], mark: Mark, *, single: bool) -> CallGrammar:
        rules = [
            f"calls: {self.call_list(single=single)}",
            f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}",
            *self.rules_beside(mark),
        ]
        marks = "|".join(one.replace("/", "\\/") for one in self.value_ends)
        rules.append(f"BARE: /(.|\\n)*/ & ~/(.|\\n)*({marks})(.|\\n)*/")
        rules.append(f"SOME: /(.|\\n)+/ & ~/(.|\\n)*({marks})(.|\\n)*/")
        values: list[ToolArguments] = []
        for i, tool in enumerate(tools):
            members = []
            for j, (key, schema, required) in enumerate(members_of(tool)):
                choices = text_choices(tool.name, key, schema)
                before, end = self.around_value(key, mark, text=choices is not None)
                members.append(f"member_{i}_{j}{'' if required else '?'}")
                rules.append(f"member_{i}_{j}: {before} value_{i}_{j}")
                if choices is None:
                    rules.append(f"value_{i}_{j}: args_{len(values)} {self.closed(end, mark)}")
                    values.append(ToolArguments(tool.name, schema, key))
                elif choices:
                    any_of = " | ".join(map(literal, choices))
                    rules.append(f"value_{i}_{j}: ({any_of}) {self.closed(end, mark)}")
                else:
                    rules.append(self.text_rule(f"value_{i}_{j}", end, mark))
            rules.append(f"call_{i}: {self.call_rule(tool.name, ' '.join(members), mark)}")
        return CallGrammar("\n".join(rules), tuple(values))


def members_of(tool: ToolArguments) -> list[tuple[str, dict[str, Any], bool]]:
    """(key, schema, whether it must be there) of each argument. Raises UnenforceableTool."""
    schema = tool.schema
    known = {"type", "properties", "required", "additionalProperties", "description", "title", "$schema"}
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    if other := sorted(schema.keys() - known - shared.keys()):
        raise UnenforceableTool(f"parameters of {tool.name}: {other[0]} cannot be enforced in this format")
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    if missing := sorted(set(required) - properties.keys()):
        raise UnenforceableTool(f"parameters of {tool.name}: {missing[0]} is required, but no property")
    found = []
    for key, one in properties.items():
        inner = one if isinstance(one, dict) else {}
        found.append((key, {**inner, **shared}, key in required))
    return found


def text_choices(tool: str, key: str, schema: dict[str, Any]) -> list[str] | None:
    """Of an argument that is a text: those it may be, or none for any. None: it is no text, but JSON.

    Raises UnenforceableTool.
    """
    if kinds_of(schema) not in (_TEXT, _NULL_OR_TEXT):
        return None
    for rule in _TEXT_RULES:
        if rule in schema:
            what = f"parameters of {tool}: the {rule} of {key} cannot be enforced in this format"
            raise UnenforceableTool(what)
    given = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return ["null" if one is None else str(one) for one in _listed(given)]


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
