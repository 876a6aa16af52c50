"""llama-index, its OpenAI-like LLM."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from .calls import EXTRACT, MODEL, PERSON, SPELL, SPELLED, URL, WEATHER, equal, run


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    city: str


options = {"model": MODEL, "api_base": f"{URL}/v1", "api_key": "none", "temperature": 0, "max_retries": 0}
llm = OpenAILike(is_chat_model=True, is_function_calling_model=True, context_window=2048, **options)


def chat() -> None:
    """`OpenAILike.chat`"""
    equal(llm.chat([ChatMessage(SPELL)]).message.content, SPELLED)


def stream() -> None:
    """`stream_chat`"""
    equal("".join(part.delta for part in llm.stream_chat([ChatMessage(SPELL)])), SPELLED)


def tools() -> None:
    """`chat_with_tools`"""

    def get_weather(city: str) -> str:
        """Temperature in a city."""
        return '{"temperature": 21}'

    asked = llm.chat_with_tools([FunctionTool.from_defaults(get_weather)], WEATHER)
    [call] = llm.get_tool_calls_from_response(asked)
    equal((call.tool_name, call.tool_kwargs), ("get_weather", {"city": "Oslo"}))


def structured() -> None:
    """`structured_predict` (a forced tool)"""
    assert isinstance(llm.as_structured_llm(Person).complete(EXTRACT).raw, Person)


def json_schema() -> None:
    """`as_structured_llm` (JSON Schema)"""
    asked = OpenAILike(is_chat_model=True, should_use_structured_outputs=True, **options)
    equal(asked.as_structured_llm(Person).complete(EXTRACT).raw, Person(**PERSON))


def complete() -> None:
    """`complete`, `stream_complete` (completions)"""
    asked = OpenAILike(is_chat_model=False, max_tokens=4, **options)
    assert asked.complete("Once").text
    assert "".join(part.delta for part in asked.stream_complete("Once"))


run(chat, stream, tools, structured, json_schema, complete)
