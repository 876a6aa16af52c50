"""Between a frontend and its helpers: msgpack frames, each after its length, over a socket pair."""

import struct
from typing import Any, Literal

from msgspec import Struct

Kind = Literal["json_schema", "regex", "choice", "grammar", "structural_tag", "frame"]
"""What a source is, see grammar_texts.py."""

LENGTH = struct.Struct("<I")


class JsonStyle(Struct, frozen=True, array_like=True):
    """How JSON is written."""

    whitespace: bool = True
    """Between tokens."""
    whitespace_pattern: str = ""
    """What counts as such; empty: grammar_texts.WHITESPACE."""


class ToolArguments(Struct, frozen=True):
    """The schema of one tool's arguments; `name` is the tool's, for what may be said against it."""

    name: str
    schema: dict[str, Any]
    member: str = ""
    """It is the schema of one argument, this one."""


class Inner(Struct, frozen=True):
    """What stands within a frame."""

    kind: Kind
    source: str
    style: JsonStyle


class Frame(Struct, frozen=True):
    """The source of kind `frame`: Lark that may speak of `args_0`, `args_1` … and of `@answer`."""

    lark: str
    arguments: tuple[ToolArguments, ...] = ()
    answer: Inner | None = None


class Question(Struct, frozen=True, array_like=True):
    """What one client wants its answer to follow."""

    folder: str
    """Of tokenizer.json"""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    kind: Kind
    source: str
    style: JsonStyle


class Begun(Struct, frozen=True, array_like=True, tag="begun"):
    """The vocabulary is loaded: from here on it is the question that takes time."""


class Verdict(Struct, frozen=True, array_like=True, tag="verdict"):
    """The text for an engine core, or what is wrong with what the client wrote."""

    text: str = ""
    error: str = ""


Answer = Begun | Verdict
