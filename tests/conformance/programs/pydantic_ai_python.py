"""pydantic-ai, with its OpenAI models."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from .calls import (
    EXTRACT,
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
    within,
)  # fmt: skip


class Person(BaseModel):
    name: str
    age: int
    city: str


provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
model = OpenAIChatModel(MODEL, provider=provider)
greedy = {"temperature": 0}


def weather_agent(asked: OpenAIChatModel | OpenAIResponsesModel) -> Agent:
    agent = Agent(asked, model_settings=greedy)

    @agent.tool_plain
    def get_weather(city: str) -> dict[str, int]:
        """Temperature in a city."""
        equal(city, "Oslo")
        return {"temperature": 21}

    return agent


def run_sync() -> None:
    """`Agent.run_sync`"""
    equal(Agent(model, model_settings=greedy).run_sync(SPELL).output, SPELLED)


def run_stream() -> None:
    """`Agent.run_stream`"""

    async def main() -> str:
        async with Agent(model, model_settings=greedy).run_stream(SPELL) as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    equal(asyncio.run(main()), SPELLED)


def tools() -> None:
    """an agent with a tool, to its last answer"""
    equal(weather_agent(model).run_sync(WEATHER).output, WEATHER_TOLD)


def native() -> None:
    """`NativeOutput` (JSON Schema)"""
    equal(
        Agent(model, output_type=NativeOutput(Person), model_settings=greedy).run_sync(EXTRACT).output,
        Person(**PERSON),
    )


def prompted() -> None:
    """`PromptedOutput` (`json_object`)"""
    agent = Agent(model, output_type=PromptedOutput(Person, template="Answer."), model_settings=greedy)
    assert isinstance(agent.run_sync(EXTRACT).output, Person)  # a mode without a schema: valid JSON


def by_tool() -> None:
    """`ToolOutput` (a forced tool)"""
    made = Agent(model, output_type=ToolOutput(Person), model_settings=greedy).run_sync(EXTRACT).output
    assert isinstance(made, Person)


def responses() -> None:
    """`OpenAIResponsesModel`, with a tool"""
    asked = OpenAIResponsesModel(MODEL, provider=provider)
    equal(weather_agent(asked).run_sync(WEATHER).output, WEATHER_TOLD)


def errors() -> None:
    """an error that names its reason"""
    try:
        Agent(model).run_sync(TOO_LONG)
    except ModelHTTPError as error:
        equal(error.status_code, 400)
        within("maximum context length", error)
    else:
        raise AssertionError("no error")


run(run_sync, run_stream, tools, native, prompted, by_tool, responses, errors)
