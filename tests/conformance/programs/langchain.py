"""langchain-openai."""

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from .calls import EXTRACT, MODEL, PERSON, SPELL, SPELLED, TOO_LONG, URL, WEATHER, WEATHER_TOLD, equal, run


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    city: str


@tool
def get_weather(city: str) -> dict[str, int]:
    """Temperature in a city."""
    return {"temperature": 21}


options = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "max_retries": 0}
chat = ChatOpenAI(temperature=0, **options)


def invoke() -> None:
    """`ChatOpenAI.invoke`"""
    equal(chat.invoke(SPELL).content, SPELLED)


def stream() -> None:
    """`ChatOpenAI.stream` with usage"""
    chunks = list(ChatOpenAI(temperature=0, stream_usage=True, **options).stream(SPELL))
    equal("".join(chunk.content for chunk in chunks), SPELLED)
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) < 40


def structured(method: str) -> None:
    made = chat.with_structured_output(Person, method=method).invoke(EXTRACT)
    equal(made, Person(**PERSON))


def json_schema() -> None:
    """`with_structured_output(method="json_schema")`"""
    structured("json_schema")


def json_mode() -> None:
    """`with_structured_output(method="json_mode")`"""
    structured("json_mode")


def function_calling() -> None:
    """`with_structured_output(method="function_calling")`"""
    made = chat.with_structured_output(Person, method="function_calling").invoke(EXTRACT)
    assert isinstance(made, Person)  # forced by grammar; the model was not taught this tool


def bind_tools() -> None:
    """`bind_tools`, streamed, and the answer after the result"""
    bound = chat.bind_tools([get_weather])
    chunks = list(bound.stream(WEATHER))
    asked = sum(chunks[1:], chunks[0])
    [call] = asked.tool_calls
    equal((call["name"], call["args"]), ("get_weather", {"city": "Oslo"}))
    result = ToolMessage('{"temperature": 21}', tool_call_id=call["id"])
    equal(bound.invoke([HumanMessage(WEATHER), asked, result]).content, WEATHER_TOLD)


def completions() -> None:
    """`OpenAI` (completions)"""
    assert OpenAI(max_tokens=4, **options).invoke("Once")
    assert "".join(OpenAI(max_tokens=4, **options).stream("Once"))


def responses() -> None:
    """`ChatOpenAI(use_responses_api=True)`"""
    asked = ChatOpenAI(temperature=0, use_responses_api=True, **options)
    equal(asked.invoke(SPELL).text, SPELLED)
    equal("".join(chunk.text for chunk in asked.stream(SPELL)), SPELLED)


def embeddings() -> None:
    """`OpenAIEmbeddings`"""
    made = OpenAIEmbeddings(check_embedding_ctx_length=False, **options).embed_documents(["tern", "sea"])
    equal(len(made), 2)


def errors() -> None:
    """`ContextOverflowError`"""
    try:
        chat.invoke(TOO_LONG)
    except ContextOverflowError:
        pass
    else:
        raise AssertionError("no error")


run(
    invoke, stream, json_schema, json_mode, function_calling, bind_tools, completions, responses, embeddings,
    errors,
)  # fmt: skip
