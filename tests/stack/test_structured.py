"""Structured output of real models: right where the model is right, and valid where it is hot or random."""

import asyncio
import json
import re
from typing import Any, Literal

import jsonschema_rs
import openai
from pydantic import BaseModel, ConfigDict

from scripts.bundled_tasks import held_out_samples
from tests.stack.conftest import Stack

EXTRACT = {
    "extract_person": {"name": "string", "age": "integer", "city": "string"},
    "extract_order": {"customer": "string", "item": "string", "count": "integer"},
}


def object_of(types: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in types.items()},
        "required": list(types),
        "additionalProperties": False,
    }


NODE = {
    "type": "object",
    "properties": {
        "leaf": {"type": "boolean"},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
    },
    "required": ["leaf", "next"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    object_of({"a": "integer", "b": "boolean", "c": "null"}),
    {"type": "array", "items": {"enum": [1, "two", None, {"three": 3}]}, "minItems": 2, "maxItems": 6},
    {"type": "string", "pattern": "^(ab|cd){2,3}$"},
    {"type": "string", "format": "date"},
    {"type": "number", "minimum": 1, "exclusiveMaximum": 2},
    {"anyOf": [{"type": "integer", "multipleOf": 7}, object_of({"x": "boolean"})]},
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {
        "type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": False, "minProperties": 1, "maxProperties": 3,
    },
]  # fmt: skip


async def ask(client: openai.AsyncOpenAI, messages: Any, **options: Any) -> Any:
    answer = await client.chat.completions.create(model="tiny", messages=messages, **options)
    return answer.choices[0]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


async def test_what_the_model_knows_is_right(bundled: Stack) -> None:
    """Held-out prompts that ask for JSON: the same objects as without a schema."""
    samples = [sample for sample in held_out_samples(8) if sample.task in EXTRACT]
    async with bundled.async_client() as client:
        choices = await asyncio.gather(
            *(
                ask(client, one.messages, temperature=0, response_format=strict(object_of(EXTRACT[one.task])))
                for one in samples
            )
        )
    assert all(choice.finish_reason == "stop" for choice in choices)
    answers = [json.loads(choice.message.content) for choice in choices]
    right = [answer == json.loads(one.answer) for answer, one in zip(answers, samples, strict=True)]
    assert sum(right) >= len(samples) - 1, [
        (answer, one.answer) for answer, one in zip(answers, samples, strict=True)
    ]


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    age: int
    city: str
    kind: Literal["adult", "child"]


async def test_the_openai_package_parses_and_streams(bundled: Stack) -> None:
    question: Any = [{"role": "user", "content": "Extract name, age and city as JSON: Ada from Rome is 36."}]
    async with bundled.async_client() as client:
        parsed = await client.chat.completions.parse(
            model="tiny", messages=question, response_format=Person, temperature=0
        )
        person = parsed.choices[0].message.parsed
        assert person is not None
        assert (person.name, person.age, person.city) == ("Ada", 36, "Rome")
        async with client.chat.completions.stream(
            model="tiny", messages=question, response_format=Person, temperature=0
        ) as stream:
            final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == person


async def test_hot_answers_are_valid(bundled: Stack) -> None:
    """At a temperature at which the model only babbles; most of them end before they are cut."""
    question = [{"role": "user", "content": "Tell me something."}]
    ended = 0
    async with bundled.async_client() as client:
        for schema in SCHEMAS:
            answer = await client.chat.completions.create(
                model="tiny", messages=question, n=4, temperature=5, max_tokens=300, seed=3,
                response_format=strict(schema),
            )  # type: ignore[call-overload]  # fmt: skip
            for choice in answer.choices:
                if choice.finish_reason == "stop":
                    ended += 1
                    assert jsonschema_rs.is_valid(schema, json.loads(choice.message.content)), choice
    assert ended > 3 * len(SCHEMAS)


async def test_other_kinds_of_grammars(bundled: Stack) -> None:
    lark = 'start: "the " ("tern" | "noddy") " flies"{2,3}'
    async with bundled.async_client() as client:
        for options, pattern in [
            ({"regex": "(yes|no), [a-z]{3,5}!"}, r"(yes|no), [a-z]{3,5}!"),
            ({"choice": ["Paris", "London", "Rome"]}, "Paris|London|Rome"),
            ({"grammar": lark}, "the (tern|noddy)( flies){2,3}"),
            ({"grammar": 'root ::= "<" ("a" | "b" | "cd") ">"'}, "<(a|b|cd)>"),
        ]:
            for seed in range(3):
                answer = await client.completions.create(
                    model="tiny", prompt="The capital of France", max_tokens=60, temperature=2, seed=seed,
                    extra_body={"structured_outputs": options},
                )  # fmt: skip
                choice = answer.choices[0]
                assert choice.finish_reason == "stop"
                assert re.fullmatch(pattern, choice.text), choice.text


async def test_choices_of_the_model_are_right(bundled: Stack) -> None:
    """Among all answers to questions of the same kind."""
    samples = [sample for sample in held_out_samples(6) if sample.task in ("weekday", "month", "opposite")]
    async with bundled.async_client() as client:
        for one in samples:
            choices = [other.answer for other in samples if other.task == one.task]
            chosen = await ask(client, one.messages, temperature=0, extra_body={"guided_choice": choices})
            assert chosen.message.content == one.answer
