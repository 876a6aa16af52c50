"""litellm."""

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its prices need not be fetched

import litellm
from pydantic import BaseModel

from .calls import EXTRACT, FUNCTION, MODEL, PERSON, SPELL, SPELLED, TOO_LONG, URL, WEATHER, equal, run


class Person(BaseModel):
    name: str
    age: int
    city: str


options = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "temperature": 0}


def ask(text: str, **fields: Any) -> Any:
    return litellm.completion(
        messages=[{"role": "user", "content": text}], num_retries=0, **options, **fields
    )


def completion() -> None:
    """`completion`"""
    equal(ask(SPELL).choices[0].message.content, SPELLED)


def stream() -> None:
    """`completion(stream=True)` with usage"""
    chunks = list(ask(SPELL, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    equal((whole.choices[0].message.content, whole.choices[0].finish_reason), (SPELLED, "stop"))


def structured() -> None:
    """`response_format` of a Pydantic model"""
    equal(json.loads(ask(EXTRACT, response_format=Person).choices[0].message.content), PERSON)


def tools() -> None:
    """`tools`, streamed"""
    chunks = list(ask(WEATHER, stream=True, tools=[{"type": "function", "function": FUNCTION}]))
    whole = litellm.stream_chunk_builder(chunks).choices[0]
    [call] = whole.message.tool_calls
    equal((whole.finish_reason, call.function.name), ("tool_calls", "get_weather"))
    equal(json.loads(call.function.arguments), {"city": "Oslo"})


def text() -> None:
    """`text_completion`"""
    made = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=f"{URL}/v1",
        api_key="none",
        prompt="Once",
        max_tokens=4,
    )
    assert made.choices[0].text


def embedding() -> None:
    """`embedding`"""
    made = litellm.embedding(
        model=f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", input=["tern", "sea"]
    )
    equal(len(made.data), 2)


def errors() -> None:
    """`ContextWindowExceededError`"""
    try:
        ask(TOO_LONG)
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("no error")


run(completion, stream, structured, tools, text, embedding, errors)
