"""instructor."""

from typing import Any

import instructor
import openai
from pydantic import BaseModel

from .calls import EXTRACT, MODEL, PERSON, URL, equal, run


class Person(BaseModel):
    name: str
    age: int
    city: str


def ask(mode: instructor.Mode) -> tuple[Any, dict[str, Any]]:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)
    fixed = {"model": MODEL, "temperature": 0, "max_retries": 0}
    return client, {"messages": [{"role": "user", "content": EXTRACT}], "response_model": Person, **fixed}


def json_schema() -> None:
    """`Mode.JSON_SCHEMA`"""
    client, fields = ask(instructor.Mode.JSON_SCHEMA)
    equal(client.create(**fields).model_dump(), PERSON)


def json() -> None:
    """`Mode.JSON`"""
    client, fields = ask(instructor.Mode.JSON)
    assert isinstance(client.create(**fields), Person)


def tools() -> None:
    """`Mode.TOOLS`"""
    client, fields = ask(instructor.Mode.TOOLS)
    assert isinstance(client.create(**fields), Person)


def partial() -> None:
    """`create_partial`"""
    client, fields = ask(instructor.Mode.JSON_SCHEMA)
    states = list(client.create_partial(**fields))
    assert len(states) > 3
    equal(states[-1].model_dump(), PERSON)


run(json_schema, json, tools, partial)
