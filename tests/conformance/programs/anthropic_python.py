"""anthropic for Python."""

import anthropic
from anthropic.types import Message, MessageParam, ToolParam, ToolResultBlockParam

from .calls import FUNCTION, MODEL, SPELL, SPELLED, TOO_LONG, URL, WEATHER, WEATHER_TOLD, equal, run, within

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
greedy = {"temperature": 0}
tools: list[ToolParam] = [{"name": FUNCTION["name"], "input_schema": FUNCTION["parameters"]}]


def user(content: str | list[ToolResultBlockParam]) -> MessageParam:
    return {"role": "user", "content": content}


def text_of(answer: Message) -> str:
    first = answer.content[0]
    assert first.type == "text"
    return first.text


def create() -> None:
    """`messages.create`"""
    answer = client.messages.create(model=MODEL, max_tokens=50, messages=[user(SPELL)], extra_body=greedy)
    equal((text_of(answer), answer.stop_reason), (SPELLED, "end_turn"))


def stream() -> None:
    """`messages.stream`"""
    with client.messages.stream(
        model=MODEL, max_tokens=50, messages=[user(SPELL)], extra_body=greedy
    ) as events:
        equal("".join(events.text_stream), SPELLED)


def tool_use() -> None:
    """`tools`, and the answer after the result"""

    def ask(*turns: MessageParam) -> Message:
        return client.messages.create(
            model=MODEL, max_tokens=200, messages=turns, tools=tools, extra_body=greedy
        )

    asked = ask(user(WEATHER))
    call = asked.content[-1]
    assert call.type == "tool_use"
    equal((asked.stop_reason, call.name, call.input), ("tool_use", "get_weather", {"city": "Oslo"}))
    result: ToolResultBlockParam = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": '{"temperature": 21}',
    }
    told = ask(user(WEATHER), {"role": "assistant", "content": asked.content}, user([result]))
    equal(text_of(told), WEATHER_TOLD)


def count() -> None:
    """`messages.count_tokens`"""
    asked = client.messages.create(model=MODEL, max_tokens=5, messages=[user(SPELL)])
    counted = client.messages.count_tokens(model=MODEL, messages=[user(SPELL)])
    equal(counted.input_tokens, asked.usage.input_tokens)


def errors() -> None:
    """`BadRequestError`"""
    try:
        client.messages.create(model=MODEL, max_tokens=50, messages=[user(TOO_LONG)])
    except anthropic.BadRequestError as error:
        within("prompt is too long", error)
    else:
        raise AssertionError("no error")


run(create, stream, tool_use, count, errors)
