"""openai for Python."""

import asyncio
from typing import Any

import openai
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import BaseModel

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
    WEATHER_TOLD,
    equal,
    run,
)  # fmt: skip


class Person(BaseModel):
    name: str
    age: int
    city: str


client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
tools: list[ChatCompletionFunctionToolParam] = [
    openai.pydantic_function_tool(Person),
    {
        "type": "function",
        "function": {
            "name": FUNCTION["name"],
            "description": FUNCTION["description"],
            "parameters": FUNCTION["parameters"],
            "strict": True,
        },
    },
]


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def create() -> None:
    """`chat.completions.create`"""
    answer = client.chat.completions.create(model=MODEL, messages=user(SPELL), temperature=0)
    equal(answer.choices[0].message.content, SPELLED)


def stream() -> None:
    """`chat.completions.create(stream=True)` with usage"""
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=user(SPELL),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    equal("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), SPELLED)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens > 4


def asynchronous() -> None:
    """`AsyncOpenAI`, eight streams at once"""

    async def one(asked: openai.AsyncOpenAI) -> str:
        text = ""
        async for chunk in await asked.chat.completions.create(
            model=MODEL, messages=user(SPELL), temperature=0, stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        return text

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as asked:
            return await asyncio.gather(*(one(asked) for _ in range(8)))

    equal(asyncio.run(main()), [SPELLED] * 8)


def helper() -> None:
    """`chat.completions.stream()` with a Pydantic model"""
    with client.chat.completions.stream(
        model=MODEL, messages=user(EXTRACT), temperature=0, response_format=Person
    ) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    equal(final.choices[0].message.parsed, Person(**PERSON))


def parse() -> None:
    """`chat.completions.parse()`"""
    answer = client.chat.completions.parse(
        model=MODEL, messages=user(EXTRACT), temperature=0, response_format=Person
    )
    equal(answer.choices[0].message.parsed, Person(**PERSON))


def strict_tools() -> None:
    """`parse(tools=…)`, strict, and the answer after its result"""
    answer = client.chat.completions.parse(
        model=MODEL, messages=user(WEATHER), temperature=0, tools=tools
    ).choices[0]
    assert answer.message.tool_calls is not None
    [call] = answer.message.tool_calls
    equal((answer.finish_reason, call.function.name), ("tool_calls", "get_weather"))
    equal(call.function.parsed_arguments, {"city": "Oslo"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'}
    turns: list[Any] = [*user(WEATHER), answer.message, result]  # its types know no parsed answer among them
    told = client.chat.completions.create(model=MODEL, messages=turns, temperature=0, tools=tools)
    equal(told.choices[0].message.content, WEATHER_TOLD)


def parse_responses() -> None:
    """`responses.parse()`"""
    answer = client.responses.parse(model=MODEL, input=EXTRACT, temperature=0, text_format=Person)
    equal(answer.output_parsed, Person(**PERSON))


def stream_responses() -> None:
    """`responses.stream()`"""
    with client.responses.stream(model=MODEL, input=SPELL, temperature=0) as events:
        for _ in events:
            pass
        equal(events.get_final_response().output_text, SPELLED)


def completions() -> None:
    """`completions.create`"""
    answer = client.completions.create(
        model=MODEL, prompt=["Once", "One"], max_tokens=4, logprobs=2, echo=True
    )
    assert [choice.text.startswith("On") for choice in answer.choices] == [True, True]


def embeddings() -> None:
    """`embeddings.create` (base64, as it asks by itself)"""
    answer = client.embeddings.create(model=MODEL, input=["tern", "sea"])
    assert abs(sum(x * x for x in answer.data[1].embedding) - 1) < 1e-3


def models() -> None:
    """`models.list`, `models.retrieve`"""
    assert MODEL in [model.id for model in client.models.list()]
    equal(client.models.retrieve(MODEL).id, MODEL)


def errors() -> None:
    """`BadRequestError`, `NotFoundError`"""
    try:
        client.chat.completions.create(model=MODEL, messages=user(TOO_LONG))
    except openai.BadRequestError as error:
        equal(error.code, "context_length_exceeded")
    else:
        raise AssertionError("no error")
    try:
        client.chat.completions.create(model="other", messages=user(SPELL))
    except openai.NotFoundError as error:
        equal((error.code, error.param), ("model_not_found", "model"))
    else:
        raise AssertionError("no error")


run(
    create, stream, asynchronous, helper, parse, strict_tools, parse_responses, stream_responses, completions,
    embeddings, models, errors,
)  # fmt: skip
