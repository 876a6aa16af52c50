"""Tools in /v1/chat/completions: from the request to the prompt, and from the model's text to calls."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.chat_template import ChatTemplate
from frontend.service import Service
from protocol import columns
from tests.frontend.conftest import Batches, MakeService, Says, asgi_client, attached, events
from tests.frontend.fake_engine import FakeEngine
from tests.frontend.test_idempotency import Event
from tests.frontend.test_idempotency import stream as keyed_stream

Ids = Callable[[str], list[int]]
URL = "/v1/chat/completions"
MAX_MODEL_LEN = 2048
CHAT_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{# <tool_call> #}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.city }}</tool_call>{% endfor %}"
    "{{ m.tool_call_id }}{{ m.name }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USER = [{"role": "user", "content": "Weather?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "Now", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "now"}}]
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


async def ask(http: httpx2.AsyncClient, **fields: Any) -> Any:
    response = await http.post(URL, json={"messages": USER, "tools": TOOLS, "max_tokens": 300, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


async def refused(http: httpx2.AsyncClient, **fields: Any) -> tuple[str, str]:
    response = await http.post(URL, json={"messages": USER, "max_tokens": 300, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


def prompt(engine: FakeEngine, service: Service) -> str:
    ids = columns.unpack_ids(engine.submits[-1].prompt_token_ids)
    return service.tokenizer.decode(ids, skip_special_tokens=False)


async def test_a_whole_answer(http: httpx2.AsyncClient, says: Says) -> None:
    says(f"Let me look.\n{CALL}{NOW}")
    (choice,) = await ask(http)
    calls = choice["message"].pop("tool_calls")
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Let me look.", "refusal": None},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert [(call["type"], call["function"]) for call in calls] == [
        ("function", {"name": "get_weather", "arguments": '{"city": "Oslo"}'}),
        ("function", {"name": "now", "arguments": "{}"}),
    ]
    assert len({call["id"] for call in calls}) == 2
    assert all(call["id"].startswith("call_") for call in calls)
    says(CALL)
    (choice,) = await ask(http)
    assert choice["message"]["content"] is None


async def test_an_answer_without_calls(http: httpx2.AsyncClient, says: Says) -> None:
    text = " It is <tool_calm>.\n"
    says(text)
    (choice,) = await ask(http)
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("size", [1, 4, 1000])
async def test_a_stream(live: httpx2.AsyncClient, says: Says, batches: Batches, size: int) -> None:
    says(f"Let me look.\n{CALL}\n{NOW}")
    batches(size)
    request = {"messages": USER, "tools": TOOLS, "stream": True, "n": 2, "max_tokens": 300}
    async with live.stream("POST", URL, json=request) as response:
        chunks = await events(response)
    for index in range(2):
        deltas = [one["delta"] for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        reasons = [
            one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["index"] == index
        ]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "Let me look."
        fragments = [call for delta in deltas for call in delta.get("tool_calls", ())]
        starts = [call for call in fragments if "id" in call]
        assert [(one["index"], one["type"], one["function"]["name"]) for one in starts] == [
            (0, "function", "get_weather"),
            (1, "function", "now"),
        ]
        for number, arguments in enumerate(['{"city": "Oslo"}', "{}"]):
            joined = [one["function"]["arguments"] for one in fragments if one["index"] == number]
            assert "".join(joined) == arguments
        assert all(one.keys() == {"index", "function"} for one in fragments if one not in starts)
        assert reasons[-1] == "tool_calls"
        assert set(reasons[:-1]) == {None}


async def test_only_one_call_if_they_may_not_be_parallel(http: httpx2.AsyncClient, says: Says) -> None:
    says(CALL + NOW + " and much more text that nobody wants")
    (choice,) = await ask(http, parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"


async def test_what_the_model_is_told(
    http: httpx2.AsyncClient, service: Service, engine: FakeEngine, says: Says
) -> None:
    says("x")
    await ask(http)
    told = json.loads(prompt(engine, service).split("<|user|>")[0])
    assert told[0] == TOOLS[0]
    assert told[1]["function"] == {"name": "now", "parameters": {"type": "object", "properties": {}}}
    history = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a1", "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}],
        },
        {"role": "tool", "tool_call_id": "a1", "content": [{"type": "text", "text": "rain"}]},
    ]  # fmt: skip
    without: list[dict[str, Any]] = [{"tool_choice": "none"}, {"tools": None}, {"tools": []}]
    for fields in without:
        await ask(http, messages=history, **fields)
        assert prompt(engine, service) == (
            "<|user|>Weather?<|end|><|assistant|><tool_call>Oslo</tool_call><|end|>"
            "<|tool|>raina1get_weather<|end|><|assistant|>"
        )


async def test_prompts_with_tools_can_be_counted(
    http: httpx2.AsyncClient, engine: FakeEngine, says: Says
) -> None:
    says("x")
    await ask(http)
    counted = await http.post("/tokenize", json={"messages": USER, "tools": TOOLS})
    assert counted.json()["tokens"] == list(columns.unpack_ids(engine.submits[-1].prompt_token_ids))


async def test_with_the_choice_of_none_nothing_is_a_call(http: httpx2.AsyncClient, says: Says) -> None:
    says(CALL)
    (choice,) = await ask(http, tool_choice="none")
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"


def nested(depth: int) -> dict[str, Any]:
    return {"properties": {"a": nested(depth - 1)}} if depth else {}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "required", "min_tokens": 3}, "min_tokens"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
      "tool_choice": "required"}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
      "tool_choice": "required"}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(60)}}]}, "tools"),
    ({"functions": [WEATHER]}, "functions"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: str(value)[:50])
async def test_bad_tools(
    http: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    found, message = await refused(http, **fields)
    assert found == param, message
    assert not engine.submits


async def test_a_model_that_is_told_nothing_of_tools(make_service: MakeService, engine: FakeEngine) -> None:
    blind = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"template": blind}, "no place for tools"),
        ({"template": blind, "tool_call_parser": "hermes"}, "no place for tools"),
        ({"template": ChatTemplate("{{ tools }}{{ messages }}", {})}, "--tool-call-parser"),
        ({"template": ChatTemplate(CHAT_TEMPLATE, {}), "tool_call_parser": "none"}, "--tool-call-parser"),
    ]
    for options, what in cases:
        async with asgi_client(await attached(make_service(**options), engine)) as client:
            param, message = await refused(client, tools=TOOLS)
            assert param == "tools"
            assert what in message
            assert "required" in message


async def test_forced_calls_are_a_grammar(http: httpx2.AsyncClient, engine: FakeEngine, says: Says) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    allowed = {"mode": "required", "tools": [named]}
    says(NOW)
    for choice in (named, {"type": "allowed_tools", "allowed_tools": allowed}):
        (answer,) = await ask(http, tool_choice=choice)
        assert answer["message"]["tool_calls"][0]["function"]["name"] == "now"
        grammar = msgspec.json.decode(engine.submits[-1].grammar)["grammars"][0]["lark_grammar"]
        assert "now" in grammar
        assert "get_weather" not in grammar
    await ask(http, tool_choice="required")
    assert "get_weather" in engine.submits[-1].grammar
    await ask(http)
    assert engine.submits[-1].grammar == ""


def told(stream: list[Event]) -> Any:
    """What a client knows in the end."""
    known: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": [], "reasons": [], "tokens": []}
    for event in stream:
        for choice in msgspec.json.decode(event.data)["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                known[name] += delta.get(name, "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(known["calls"])
                    known["calls"].append([call["id"], call["function"]["name"], ""])
                known["calls"][call["index"]][2] += call["function"]["arguments"]
            known["reasons"] += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
            known["tokens"] += [one["token"] for one in (choice["logprobs"] or {}).get("content", ())]
    return known


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize(
    "fields", [{}, {"parallel_tool_calls": False}, {"logprobs": True}, {"stop": ["Par"]}], ids=str
)
async def test_a_stream_goes_on_behind_any_event(
    make_service: MakeService,
    engine: FakeEngine,
    says: Says,
    batches: Batches,
    fields: dict[str, Any],
    batch: int,
) -> None:
    """In the middle of the reasoning, of a marker, of a call: the rest is the rest of the same."""
    paris = CALL.replace("Oslo", "Paris 🐦")
    says(f"<think>Two.</think>Let me <look>.\n{CALL}\n{paris} <tool_call>none")
    service = make_service(template=ChatTemplate(CHAT_TEMPLATE, {}), reasoning_parser="think")
    request = {"messages": USER, "tools": TOOLS, "max_tokens": 300, "stream": True, **fields}
    async with asgi_client(await attached(service, engine)) as client:
        batches(1)
        whole = await keyed_stream(client, URL, request)
        expected = told(whole)
        assert len(whole) > 20
        assert expected["calls"][0][1:] == ["get_weather", '{"city": "Oslo"}']
        assert expected["content"].startswith("Let me <look>.")
        assert expected["reasoning_content"] == "Two."
        assert expected["reasons"] == ["stop" if "stop" in fields else "tool_calls"], "cut within a call"
        batches(batch)
        for count in range(1, len(whole) + 1, 1 if batch == 1 else 5):
            event = whole[count - 1]
            rest = await keyed_stream(client, URL, request, last=event.id)
            assert told(whole[:count] + rest) == expected, event.id


async def test_an_answer_that_ends_within_a_call_does_not_ask_for_it(
    http: httpx2.AsyncClient, says: Says
) -> None:
    says(CALL)
    (choice,) = await ask(http, stop="lo")
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Os'
    assert choice["finish_reason"] == "stop"
