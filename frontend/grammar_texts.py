"""What clients write → the text that an engine core follows (protocol/grammar.py). Runs in the helper only.

    json_schema      a JSON Schema (draft 4 … 2020-12), any JSON value for `true`
    regex            the whole answer, in the syntax of Rust's regex crate
    choice           a JSON list of texts, one of which is the answer
    grammar          Lark, or GBNF, which is told by its `::=`
    structural_tag   free text, in which whatever begins with a trigger is a tag with a schema
    frame            Lark of our own around schemas of tools' arguments and around any of the others

Whoever cannot be enforced is refused by name: llguidance does that for most keywords, `UNENFORCED` names the
ones that it passes over.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from llguidance import LLMatcher, StructTag
from llguidance.gbnf_to_lark import any_to_lark
from msgspec import Meta, Struct

from protocol.grammar import GrammarError

from .grammar_messages import Frame, JsonStyle, Kind, ToolArguments

UNENFORCED = {
    "nullable": 'it is not of JSON Schema; write "type": ["string", "null"]',
    "contentEncoding": "write a pattern",
    "contentMediaType": "describe it in the prompt",
    "contentSchema": "describe it in the prompt",
    "divisibleBy": "use multipleOf",
    "disallow": "list what is allowed",
    "extends": "use allOf",
}
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,16}"
"""Between the tokens of JSON, where the model wants some; bounded, so that a weak model gets on."""
_SCHEMA_OF_EACH = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COMPOSED = {"allOf", "anyOf", "oneOf", "$ref", "unevaluatedProperties"}
"""Whoever has one of these may name properties elsewhere."""
_SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")


class Structure(Struct, frozen=True, forbid_unknown_fields=True):
    begin: Annotated[str, Meta(min_length=1, max_length=1024)]
    schema: dict[str, Any] | bool
    end: Annotated[str, Meta(max_length=1024)]


class StructuralTag(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's form with structures and triggers."""

    structures: Annotated[list[Structure], Meta(min_length=1, max_length=128)]
    triggers: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(min_length=1)]
    type: Literal["structural_tag"] = "structural_tag"


def make_text(kind: Kind, source: str, style: JsonStyle) -> str:
    """The text for an engine core; it may still turn out to be unreadable. Raises GrammarError."""
    try:
        match kind:
            case "json_schema":
                return _json_schema(json.loads(source), style)
            case "regex":
                return LLMatcher.grammar_from_regex(source)
            case "choice":
                return _choice(source)
            case "grammar":
                return any_to_lark(source) if "::=" in source else source
            case "structural_tag":
                return _structural_tag(source, style)
            case "frame":
                return _frame(msgspec.json.decode(source, type=Frame))
    except GrammarError:
        raise
    except msgspec.ValidationError as error:
        raise GrammarError(str(error).replace("`", "")) from None
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except Exception as error:  # the converter from GBNF raises its own kind
        raise GrammarError(str(error)) from None


def _json_schema(schema: object, style: JsonStyle) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("a JSON Schema is an object or true")
    for keyword in _keywords(schema):
        if keyword in UNENFORCED:
            raise GrammarError(f"the keyword {keyword} cannot be enforced: {UNENFORCED[keyword]}")
    defaults: dict[str, Any] = {"whitespace_pattern": style.whitespace_pattern or WHITESPACE}
    if not style.whitespace:
        defaults = {"whitespace_flexible": False}
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults, {"lenient": False})  # type: ignore[arg-type]


def _keywords(schema: object) -> Iterator[str]:
    """Of a schema and all within it."""
    open_schemas = [schema]
    while open_schemas:
        one = open_schemas.pop()
        if not isinstance(one, dict):
            continue
        yield from one
        for name, value in one.items():
            if name in _SCHEMA_OF_EACH and isinstance(value, dict):
                open_schemas += value.values()
            elif name in _SCHEMA_LISTS and isinstance(value, list):
                open_schemas += value
            elif name in ("items", "additionalProperties", "additionalItems", "contains", "not"):
                open_schemas += value if isinstance(value, list) else [value]


def _choice(source: str) -> str:
    choices = msgspec.json.decode(source, type=Annotated[list[str], Meta(min_length=1, max_length=1 << 14)])
    if "" in choices:
        raise GrammarError("an empty text is no choice")
    return "start: " + " | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))


def _structural_tag(source: str, style: JsonStyle) -> str:
    given = msgspec.json.decode(source, type=StructuralTag)
    tags = []
    for structure in given.structures:
        trigger = next((one for one in given.triggers if structure.begin.startswith(one)), None)
        if trigger is None:
            raise GrammarError(f"no trigger is a beginning of {structure.begin!r}")
        schema = json.loads(_json_schema(structure.schema, style))["grammars"][0]["json_schema"]
        tags.append(StructTag(trigger=trigger, begin=structure.begin, grammar=schema, end=structure.end))
    return StructTag.to_grammar(tags, assume_special=False)


def _frame(frame: Frame) -> str:
    rules = [_arguments(i, one) for i, one in enumerate(frame.arguments)]
    grammars: list[Any] = [{"name": "frame", "lark_grammar": "\n".join([frame.lark, *rules])}]
    if frame.answer is not None:
        answer = make_text(frame.answer.kind, frame.answer.source, frame.answer.style)
        parts = [{"lark_grammar": answer}]
        if answer.startswith("{"):
            parts = json.loads(answer)["grammars"]
        grammars += [{**parts[0], "name": "answer"}, *parts[1:]]
    return json.dumps({"grammars": grammars})


def _arguments(index: int, tool: ToolArguments) -> str:
    """The rule of a tool's arguments: an object, of no others than its schema names, if that does not say; or
    of one of them."""
    schema = tool.schema
    if not tool.member:
        if "properties" in schema and not _COMPOSED & schema.keys():
            schema = {"additionalProperties": False, **schema}
        if schema.get("type") not in ("object", None):
            what = f'parameters of {tool.name}: "type" is "object", got {json.dumps(schema["type"])}'
            raise GrammarError(what)
        schema = {"type": "object", **schema}
    try:
        text = _json_schema(schema, JsonStyle())
        if message := LLMatcher.validate_grammar(text):
            raise GrammarError(message)
    except GrammarError as error:
        raise GrammarError(f"parameters of {tool.name}: {error}") from None
    return f"args_{index}: %json {json.dumps(json.loads(text)['grammars'][0]['json_schema'])}"
