"""docs/api.md: its tables are made from the types that requests are decoded with and the lists beside them.

    python -m scripts.api_page          writes them into the page again
    python -m scripts.api_page --check  says whether that would change anything

Everything else of the page is prose, and stays as it is.
"""

import argparse
import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from frontend.anthropic import request as messages
from frontend.openai import accepted, refused
from frontend.openai.chat import ChatRequest
from frontend.openai.completions import CompletionRequest
from frontend.openai.document import OPERATIONS
from frontend.openai.embeddings import EmbeddingRequest
from frontend.openai.refused import Refusal
from frontend.openai.responses import request as responses
from frontend.openai.tokenize import DetokenizeRequest, TokenizeRequest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
HONOURED, REFUSED, ACCEPTED = "honoured", "refused", "accepted without effect"
_BLOCK = re.compile(r"(<!-- made: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_REF = "#/components/schemas/"
_DEEPEST = 3


class Endpoint(NamedTuple):
    """Where the fields of one endpoint's requests are written down."""

    request: type[Struct]
    refused: Mapping[str, Refusal]
    accepted: Mapping[str, str]


class Row(NamedTuple):
    """One field."""

    field: str
    values: str
    treatment: str
    note: str


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatRequest, refused.CHAT, accepted.CHAT),
    "/v1/completions": Endpoint(CompletionRequest, refused.COMPLETIONS, accepted.COMPLETIONS),
    "/v1/responses": Endpoint(responses.ResponsesRequest, responses.RESPONSES, responses.ACCEPTED),
    "/v1/messages": Endpoint(messages.MessagesRequest, messages.MESSAGES, messages.ACCEPTED),
    "/v1/messages/count_tokens": Endpoint(messages.CountFields, messages.PROMPT, messages.COUNT_ACCEPTED),
    "/v1/embeddings": Endpoint(EmbeddingRequest, refused.EMBEDDINGS, accepted.EMBEDDINGS),
    "/tokenize": Endpoint(TokenizeRequest, {}, accepted.TOKENIZE),
    "/detokenize": Endpoint(DetokenizeRequest, {}, {}),
}


def rows(endpoint: Endpoint) -> list[Row]:
    """Of every field that is known there, those of nested objects behind the object itself."""
    _, schemas = msgspec.json.schema_components([endpoint.request], ref_template=_REF + "{name}")
    found = list(_honoured(endpoint.request.__name__, schemas, _notes(endpoint.request), ""))
    classes = endpoint.request.__mro__
    found.sort(key=lambda row: _place(row.field.partition(".")[0].removesuffix("[]"), classes))
    typed = [
        row._replace(treatment=ACCEPTED, note=endpoint.accepted[row.field])
        if row.field in endpoint.accepted
        else row
        for row in found
    ]
    names = {row.field for row in typed}
    return [
        *(row for row in typed if row.treatment == HONOURED),
        *(Row(name, _harmless(one), REFUSED, one.remedy) for name, one in endpoint.refused.items()),
        *(row for row in typed if row.treatment == ACCEPTED),
        *(Row(name, "any", ACCEPTED, why) for name, why in endpoint.accepted.items() if name not in names),
    ]


def render(page: str) -> str:
    """The page with its tables as they must be now. Raises KeyError for a table that nobody knows."""

    def made(block: re.Match[str]) -> str:
        table = _operations() if block["name"] == "endpoints" else _fields(ENDPOINTS[block["name"]])
        return f"{block[1]}{table}\n{block[3]}"

    return _BLOCK.sub(made, page)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    page = PAGE.read_text()
    now = render(page)
    if now == page:
        return 0
    if check:
        print(f"{PAGE.name} is not as the types say: run python -m scripts.api_page", file=sys.stderr)
        return 1
    PAGE.write_text(now)
    return 0


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def _operations() -> str:
    lines = ["| endpoint | what it does |", "|---|---|"]
    lines += [
        f"| `{method.upper()} {path}` | {operation.summary} |"
        for (method, path), operation in OPERATIONS.items()
    ]
    return "\n".join(lines)


def _fields(endpoint: Endpoint) -> str:
    lines = ["| field | values | what we do | |", "|---|---|---|---|"]
    for row in rows(endpoint):
        cells = (f"`{row.field}`", row.values, row.treatment, row.note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _harmless(refusal: Refusal) -> str:
    """The values that ask for nothing."""
    shown = ["null", *dict.fromkeys(msgspec.json.encode(one).decode() for one in refusal.harmless)]
    return "only " + ", ".join(f"`{one}`" for one in shown)


def _honoured(name: str, schemas: Mapping[str, Any], notes: Mapping[str, str], prefix: str) -> Iterator[Row]:
    for field, schema in schemas[name]["properties"].items():
        yield Row(prefix + field, _values(schema), HONOURED, notes.get(f"{name}.{field}", ""))
        for ref, many in _refs(schema):
            if prefix.count(".") < _DEEPEST - 1:
                yield from _honoured(ref, schemas, notes, f"{prefix}{field}{'[]' if many else ''}.")


def _place(field: str, classes: Sequence[type]) -> int:
    """A type's own fields come before those of its bases."""
    return next(place for place, kind in enumerate(classes) if field in inspect.get_annotations(kind))


def _refs(schema: Mapping[str, Any], many: bool = False) -> Iterator[tuple[str, bool]]:
    """(the name of an object that may stand there, whether in a list)"""
    if "$ref" in schema:
        yield schema["$ref"].removeprefix(_REF), many
    for one in schema.get("anyOf", ()):
        yield from _refs(one, many)
    if isinstance(schema.get("items"), dict):
        yield from _refs(schema["items"], True)


def _values(schema: Mapping[str, Any]) -> str:
    """In words; null is allowed nearly everywhere and not said."""
    if "$ref" in schema:
        return "object"
    if "anyOf" in schema:
        parts = [_values(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"] if one is not None)
    match schema.get("type"):
        case "array":
            return (
                f"list of: {_values(schema.get('items', {}))}{_span(schema, 'minItems', 'maxItems', 'items')}"
            )
        case "string":
            return f"text{_span(schema, 'minLength', 'maxLength', 'characters')}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of: {_values(schema['additionalProperties'])}"
        case "integer":
            return f"integer{_span(schema, 'minimum', 'maximum')}"
        case "number":
            low = " > 0" if schema.get("exclusiveMinimum") == 0 else ""
            return f"number{low}{_span(schema, 'minimum', 'maximum')}"
        case None:
            return "any JSON"
        case kind:
            return str(kind)


def _span(schema: Mapping[str, Any], least: str, most: str, unit: str = "") -> str:
    low, high = schema.get(least), schema.get(most)
    tail = f" {unit}" if unit else ""
    if low is not None and high is not None:
        span = f"{_number(low)} … {_number(high)}{tail}"
    elif high is not None:
        span = f"up to {_number(high)}{tail}"
    elif low is not None:
        span = f"at least {_number(low)}{tail}"
    else:
        return ""
    return f" ({span})" if unit else f" {span}"


def _number(value: float) -> str:
    """Powers of two as such: that is how large limits are meant."""
    for offset in (0, 1):
        whole = abs(int(value)) + offset
        if whole >= 1 << 16 and whole & (whole - 1) == 0:
            return f"{'-' if value < 0 else ''}2^{whole.bit_length() - 1}{'-1' if offset else ''}"
    return f"{value:g}"


def _notes(kind: type[Struct]) -> dict[str, str]:
    """(class.field) → its docstring, of a request's type and of all types in its fields."""
    found: dict[str, str] = {}
    waiting, seen = [kind], {kind}
    while waiting:
        one = waiting.pop()
        for base in reversed(one.__mro__):
            if issubclass(base, Struct) and base is not Struct:
                found |= {f"{one.__name__}.{name}": text for name, text in _docstrings(base).items()}
        for field in msgspec.structs.fields(one):
            for inner in _structs_in(field.type):
                if inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
    return found


@functools.cache
def _docstrings(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for line, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[line.target.id] = " ".join(text.split())
                case _:
                    pass
    return found


def _structs_in(annotation: Any) -> Iterator[type[Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        yield annotation
    for one in getattr(annotation, "__args__", ()):
        yield from _structs_in(one)
    if hasattr(annotation, "__origin__") and annotation.__origin__ is not annotation:
        yield from _structs_in(annotation.__origin__)


if __name__ == "__main__":
    sys.exit(main())
