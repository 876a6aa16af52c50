"""anthropic for Python."""

import anthropic
from calls import FUNCTION, MODEL, SPELL, SPELLED, TOO_LONG, URL, WEATHER, WEATHER_TOLD, equal, run, within

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
greedy = {"temperature": 0}
tools = [{"name": FUNCTION["name"], "input_schema": FUNCTION["parameters"]}]


def user(text: object):
    return {"role": "user", "content": text}


def create() -> None:
    """`messages.create`"""
    answer = client.messages.create(model=MODEL, max_tokens=50, messages=[user(SPELL)], extra_body=greedy)
    equal((answer.content[0].text, answer.stop_reason), (SPELLED, "end_turn"))


def stream() -> None:
    """`messages.stream`"""
    with client.messages.stream(
        model=MODEL, max_tokens=50, messages=[user(SPELL)], extra_body=greedy
    ) as events:
        equal("".join(events.text_stream), SPELLED)


def tool_use() -> None:
    """`tools`, and the answer after the result"""
    fixed = {"model": MODEL, "max_tokens": 200, "tools": tools, "extra_body": greedy}
    asked = client.messages.create(messages=[user(WEATHER)], **fixed)
    call = asked.content[-1]
    equal((asked.stop_reason, call.name, call.input), ("tool_use", "get_weather", {"city": "Oslo"}))
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 21}'}
    turns = [user(WEATHER), {"role": "assistant", "content": asked.content}, user([result])]
    equal(client.messages.create(messages=turns, **fixed).content[0].text, WEATHER_TOLD)


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
