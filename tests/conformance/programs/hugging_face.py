"""huggingface_hub's InferenceClient."""

import asyncio
import json
from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from .calls import (
    EXTRACT,
    FUNCTION,
    MODEL,
    PERSON,
    SPELL,
    SPELLED,
    TOO_LONG,
    URL,
    WEATHER,
    equal,
    run,
    within,
)

client = InferenceClient(base_url=f"{URL}/v1", api_key="none")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def ask(text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **fields)


def create() -> None:
    """`chat.completions.create`"""
    equal(ask(SPELL).choices[0].message.content, SPELLED)


def stream() -> None:
    """`chat_completion(stream=True)`"""
    equal("".join(c.choices[0].delta.content or "" for c in ask(SPELL, stream=True) if c.choices), SPELLED)


def asynchronous() -> None:
    """`AsyncInferenceClient`"""

    async def main() -> str:
        async with AsyncInferenceClient(base_url=f"{URL}/v1", api_key="none") as asked:
            answer = await asked.chat_completion(
                [{"role": "user", "content": SPELL}], model=MODEL, temperature=0
            )
        content: str = answer.choices[0].message.content
        return content

    equal(asyncio.run(main()), SPELLED)


def structured() -> None:
    """`response_format` (JSON Schema)"""
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    equal(json.loads(ask(EXTRACT, response_format=wanted).choices[0].message.content), PERSON)


def tools() -> None:
    """`tools`"""
    [call] = ask(WEATHER, tools=[{"type": "function", "function": FUNCTION}]).choices[0].message.tool_calls
    equal((call.function.name, json.loads(call.function.arguments)), ("get_weather", {"city": "Oslo"}))


def errors() -> None:
    """`HfHubHTTPError` that names its reason"""
    try:
        ask(TOO_LONG)
    except HfHubHTTPError as error:
        equal(error.response.status_code, 400)
        within("maximum context length", error)
    else:
        raise AssertionError("no error")


run(create, stream, asynchronous, structured, tools, errors)
