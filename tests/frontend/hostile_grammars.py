"""Grammars that nobody who means well would send: (kind, source), each of which must be refused.

Wrong ones, impossible ones, and those that would cost a server too much to read or to follow.
"""

import json
from typing import Any

from frontend.grammar_messages import Kind


def schema(value: Any) -> tuple[Kind, str]:
    return "json_schema", json.dumps(value)


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


HOSTILE: dict[str, tuple[Kind, str]] = {
    # ── regexes ──
    "an open group": ("regex", "(a"),
    "an open class": ("regex", "[a-"),
    "a wrong range": ("regex", "[z-a]"),
    "a wrong repetition": ("regex", "a{5,2}"),
    "look-ahead": ("regex", "(?=a)b"),
    "a back-reference": ("regex", r"(a)\1"),
    "an unknown escape": ("regex", r"\q"),
    "very deep": ("regex", "(" * 5000 + "a" + ")" * 5000),
    "a quarter of a million letters": ("regex", "a" * 250_000),
    "optional letters and as many letters": ("regex", "(a?){500}a{500}"),
    "the empty language": ("regex", "[^\\x00-\\U0010FFFF]"),
    "larger than is read": ("regex", "a" * 300_000),
    # ── schemas ──
    "not JSON": ("json_schema", "{"),
    "a number": ("json_schema", "3"),
    "a list": ("json_schema", "[]"),
    "false": ("json_schema", "false"),
    "an unknown type": schema({"type": "foo"}),
    "a reference to itself": schema({"$ref": "#"}),
    "references in a circle": schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "a reference to nowhere": schema({"$ref": "#/$defs/nobody"}),
    "a reference into the network": schema({"$ref": "http://127.0.0.1:1/schema.json"}),
    "a reference to a file": schema({"$ref": "file:///etc/passwd"}),
    "deeper than is read": ("json_schema", nested(300)),
    "so deep that a stack might end": ("json_schema", nested(20_000)),
    "thousands of properties": schema({"type": "object", "properties": {f"p{i}": {} for i in range(1000)}}),
    "a pattern that is none": schema({"type": "string", "pattern": "("}),
    "an exponential product": schema(
        {"allOf": [{"anyOf": [{"pattern": f"a{i}"}, {"type": "integer", "minimum": i}]} for i in range(14)]}
    ),
    "a huge multiple": schema({"type": "integer", "multipleOf": 982451653}),
    "more than all numbers": schema({"type": "integer", "minimum": -(10**40), "maximum": 10**40}),
    "impossible lengths": schema({"type": "string", "minLength": 5, "maxLength": 2}),
    "a required impossibility": schema(
        {"type": "object", "properties": {"a": False}, "required": ["a"]}
    ),
    "what cannot be enforced": schema({"type": "array", "uniqueItems": True}),
    "what would be passed over": schema({"type": "string", "contentEncoding": "base64"}),
    "leniency through the back door": schema({"x-guidance": {"lenient": True}, "not": {}}),
    # ── choices ──
    "no choices": ("choice", "[]"),
    "numbers as choices": ("choice", "[1]"),
    "nothing as a choice": ("choice", '["a", ""]'),
    "far too many choices": ("choice", json.dumps([str(i) for i in range(20_000)])),
    # ── grammars ──
    "an unknown name": ("grammar", "start: nobody"),
    "a rule that is only itself": ("grammar", "start: start"),
    "rules in a circle": ("grammar", "start: a\na: b\nb: a"),
    "open parentheses": ("grammar", "start: " + "(" * 3000),
    "parentheses": ("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000),
    "a wrong regex inside": ("grammar", "start: /(/"),
    "GBNF that is none": ("grammar", "root ::= ("),
    "very deep GBNF": ("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
    "no start": ("grammar", 'a: "a"'),
    "nothing": ("grammar", ""),
    # ── tags ──
    "a tag without its trigger": (
        "structural_tag",
        json.dumps({"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["<b"]}),
    ),
    "no triggers": (
        "structural_tag",
        json.dumps({"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": []}),
    ),
    "another form of tags": ("structural_tag", json.dumps({"format": {"type": "any_text"}})),
}  # fmt: skip
