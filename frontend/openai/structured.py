"""What an answer has to look like: every spelling of it, and which of them contradict each other.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_…` what vLLM called it before. Schemas are
carried as the bytes that came: only the helper (grammar_helper.py) looks into them.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct, field

from protocol.errors import InvalidRequest, Unsupported
from protocol.messages import EngineFacts
from protocol.sampling import NOT_WITH_GRAMMAR

from ..grammar_messages import JsonStyle
from ..grammars import Constraint, Grammars

MOST_CHOICES = 1 << 14
MOST_GRAMMAR_CHARS = 8 << 20
"""Over all answers of a request: each is a request of its own to the engine core."""

NULL = Raw(b"null")
ANY_OBJECT = '{"type":"object"}'


def _null() -> Raw:
    return NULL


Choices = Annotated[list[str], Meta(min_length=1, max_length=MOST_CHOICES)]


class JsonSchemaFormat(Struct, frozen=True, kw_only=True):
    schema: Raw = field(default_factory=_null)
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: Raw = field(default_factory=_null)
    triggers: Raw = field(default_factory=_null)


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the first six, and how JSON is written."""

    json: Raw = field(default_factory=_null)
    """A schema, as an object or as text."""
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    """Lark or GBNF."""
    structural_tag: Raw = field(default_factory=_null)
    whitespace_pattern: Annotated[str, Meta(max_length=256)] | None = None
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None
    disable_additional_properties: bool | None = None
    """true is refused: write it into the schema."""


class ConstrainedFields(Struct, frozen=True, kw_only=True):
    """Of every endpoint that generates."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw = field(default_factory=_null)
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: Annotated[str, Meta(max_length=256)] | None = None
    guided_decoding_backend: str | None = None


def constraint_of(request: ConstrainedFields) -> Constraint | None:
    """The one thing that is asked for. Raises InvalidRequest if there are two."""
    found = list(_asked(request))
    if len(found) > 1:
        first, second = found[0].param, found[1].param
        raise InvalidRequest(f"{second}: {first} already says what the answer must be", param=second)
    return found[0] if found else None


def check_room(constraint: Constraint, others: Mapping[str, object]) -> None:
    """`others`: the request's values of NOT_WITH_GRAMMAR. Raises InvalidRequest for one that is given."""
    for name, value in others.items():
        if value:
            rule = f"not together with {constraint.param}, which alone {NOT_WITH_GRAMMAR[name]}"
            raise InvalidRequest(f"{name}: {rule}", param=name)


async def compile_constraint(
    grammars: Grammars, constraint: Constraint, facts: EngineFacts, num_choices: int
) -> str:
    """What `Wish.grammar` has to be. Raises InvalidRequest, or a ServiceError."""
    text = await grammars.compile(
        constraint.kind, constraint.source, facts, constraint.param, constraint.style
    )
    if len(text) * num_choices > MOST_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"{constraint.param}: too long for {num_choices} answers", param=constraint.param
        )
    return text


def _asked(request: ConstrainedFields) -> Iterator[Constraint]:
    if (given := request.response_format) is not None:
        yield from _of_format(given)
    if (outputs := request.structured_outputs) is not None:
        if outputs.disable_additional_properties:
            name = "structured_outputs.disable_additional_properties"
            raise Unsupported(
                f'{name} is not supported: write "additionalProperties": false into the schema', param=name
            )
        style = JsonStyle(not outputs.disable_any_whitespace, outputs.whitespace_pattern or "")
        yield from _of_fields(
            "structured_outputs.",
            outputs.json,
            outputs.regex,
            outputs.choice,
            outputs.grammar,
            style,
        )
        if outputs.json_object:
            yield Constraint("structured_outputs.json_object", "json_schema", ANY_OBJECT, style)
        if outputs.structural_tag != NULL:
            param = "structured_outputs.structural_tag"
            yield Constraint(param, "structural_tag", text_of(outputs.structural_tag, param), style)
    yield from _of_fields(
        "guided_",
        request.guided_json,
        request.guided_regex,
        request.guided_choice,
        request.guided_grammar,
        JsonStyle(whitespace_pattern=request.guided_whitespace_pattern or ""),
    )


def _of_format(given: ResponseFormat) -> Iterator[Constraint]:
    match given.type:
        case "text":
            return
        case "json_object":
            yield Constraint("response_format", "json_schema", ANY_OBJECT)
        case "json_schema":
            param = "response_format.json_schema"
            if given.json_schema is None or given.json_schema.schema == NULL:
                param += "" if given.json_schema is None else ".schema"
                raise InvalidRequest(f"{param}: required, but missing", param=param)
            param += ".schema"
            yield Constraint(param, "json_schema", text_of(given.json_schema.schema, param))
        case "structural_tag":
            tag = b'{"structures":%b,"triggers":%b}' % (bytes(given.structures), bytes(given.triggers))
            yield Constraint("response_format", "structural_tag", text_of(Raw(tag), "response_format"))


def _of_fields(
    prefix: str,
    schema: Raw,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
    style: JsonStyle,
) -> Iterator[Constraint]:
    if schema != NULL:
        yield Constraint(f"{prefix}json", "json_schema", text_of(schema, f"{prefix}json"), style)
    if regex is not None:
        yield Constraint(f"{prefix}regex", "regex", regex)
    if choice is not None:
        yield Constraint(f"{prefix}choice", "choice", msgspec.json.encode(choice).decode())
    if grammar is not None:
        yield Constraint(f"{prefix}grammar", "grammar", grammar)


def text_of(given: Raw, param: str) -> str:
    """JSON as it came; or, where that is a text, the JSON that the text holds."""
    data = bytes(given).strip()
    try:
        return msgspec.json.decode(data, type=str) if data.startswith(b'"') else data.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from None
