"""Tools and reasoning in /v1/responses and /v1/messages: one answer of every kind of item, in both shapes."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import Message
from pydantic import BaseModel

from frontend.service import Service
from tests.frontend import test_messages, test_responses
from tests.frontend.conftest import Says, Serve
from tests.frontend.fake_engine import FakeEngine
from tests.frontend.responses_schema import check_response
from tests.frontend.test_outbox import stream, told
from tests.frontend.test_responses import prompt_of

Ids = Callable[[str], list[int]]
MAX_MODEL_LEN = 2048
CHAT_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{# <tool_call> </think> #}{{ reasoning_effort }}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.city }}</tool_call>{% endfor %}"
    "{{ m.tool_call_id }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}"
    "{% endif %}"
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
ALL = f"<think>Which city?</think>Let me look.\n{CALL}{NOW}"

RESPONSES_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "get_weather", "description": "Now", "parameters": PARAMETERS},
    {"type": "web_search"},
    {"type": "function", "name": "now"},
    {"type": "namespace", "name": "x", "tools": []},
]
ANTHROPIC_TOOLS: list[dict[str, Any]] = [
    {"name": "get_weather", "description": "Now", "input_schema": PARAMETERS},
    {"type": "web_search_20250305", "name": "web_search"},
    {"type": "custom", "name": "now", "input_schema": {"type": "object"}},
]
RESPONSES: dict[str, Any] = {"model": "tiny", "input": "Weather?", "tools": RESPONSES_TOOLS}
MESSAGES: dict[str, Any] = {
    "model": "tiny", "max_tokens": 500, "tools": ANTHROPIC_TOOLS,
    "messages": [{"role": "user", "content": "Weather?"}],
}  # fmt: skip


async def test_items_of_a_response(http: httpx2.AsyncClient, says: Says) -> None:
    says(ALL)
    whole = (await http.post(test_responses.URL, json=RESPONSES)).json()
    check_response(whole)
    reasoning, message, weather, now = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Which city?"}]
    assert message["content"][0]["text"] == "Let me look."
    assert (weather["name"], weather["arguments"]) == ("get_weather", '{"city": "Oslo"}')
    assert (now["name"], now["arguments"]) == ("now", "{}")
    assert weather["call_id"] != now["call_id"]
    assert whole["skipped_tools"] == ["web_search", "namespace"]
    assert [tool["name"] for tool in whole["tools"]] == ["get_weather", "now"]
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert whole["status"] == "completed"

    events = test_responses.events_of(
        (await http.post(test_responses.URL, json={**RESPONSES, "stream": True})).text
    )
    kinds = [event["type"].removeprefix("response.") for event in events]
    unique = [kind for i, kind in enumerate(kinds) if not kind.endswith("delta") or kinds[i - 1] != kind]
    text = ["output_text.delta", "output_text.done", "content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    begun = ["output_item.added", "content_part.added"]
    thought = ["reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done"]
    calls = [*call, "output_item.done"] * 2
    assert unique == ["created", "in_progress", *begun, *thought, *begun, *text, *calls, "completed"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert [item["type"] for item in done] == [item["type"] for item in whole["output"]]
    arguments = [event["delta"] for event in events if "arguments.delta" in event["type"]]
    assert "".join(arguments) == '{"city": "Oslo"}{}'


async def test_blocks_of_a_message(http: httpx2.AsyncClient, says: Says) -> None:
    says(ALL)
    whole = (await http.post(test_messages.URL, json=MESSAGES)).json()
    Message.model_validate_json(json.dumps(whole), strict=True)
    thinking, text, weather, now = whole["content"]
    assert thinking == {"type": "thinking", "thinking": "Which city?", "signature": ""}
    assert text["text"] == "Let me look."
    assert (weather["type"], weather["name"], weather["input"]) == (
        "tool_use",
        "get_weather",
        {"city": "Oslo"},
    )
    assert (now["name"], now["input"]) == ("now", {})
    assert whole["stop_reason"] == "tool_use"
    assert whole["skipped_tools"] == ["web_search_20250305"]

    events = test_messages.events_of(
        (await http.post(test_messages.URL, json={**MESSAGES, "stream": True})).text
    )
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    deltas: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            (text,) = (value for key, value in event["delta"].items() if key != "type")
            deltas[event["index"]] = deltas.get(event["index"], "") + text
    assert list(deltas.values()) == ["Which city?", "Let me look.", '{"city": "Oslo"}', "{}"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize(("url", "request_"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)])
async def test_a_stream_goes_on_within_any_item(
    http: httpx2.AsyncClient, engine: FakeEngine, says: Says, url: str, request_: dict[str, Any], batch: int
) -> None:
    says(ALL)
    whole = await stream(http, url, request_, None)
    engine.tokens_per_message = batch
    for count, (last, _) in enumerate(whole, 1):
        rest = await stream(http, url, request_, last)
        assert told(whole[:count] + rest) == told(whole), last


class Weather(BaseModel):
    city: str


async def test_the_openai_package(service: Service, serve: Serve, says: Says, engine: FakeEngine) -> None:
    """A round: the call, its output, the answer; the history comes from the store."""
    url = await serve(service) + "/v1"
    tool = openai.pydantic_function_tool(Weather, name="get_weather")["function"]
    tools: Any = [{"type": "function", **tool, "strict": False}]
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        says(CALL)
        async with client.responses.stream(model="tiny", input="Weather?", tools=tools) as events:
            first = await events.get_final_response()
        (call,) = first.output
        assert call.type == "function_call"
        assert call.arguments == '{"city": "Oslo"}'
        says("Sun.")
        second = await client.responses.create(
            model="tiny", previous_response_id=first.id, tools=tools,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "21"}],
        )  # fmt: skip
    assert second.output_text == "Sun."
    assert prompt_of(service, engine).endswith(
        f"<|user|>Weather?<|end|><|assistant|><tool_call>Oslo</tool_call><|end|>"
        f"<|tool|>21{call.call_id}<|end|><|assistant|>"
    )


async def test_the_anthropic_package(service: Service, serve: Serve, says: Says, engine: FakeEngine) -> None:
    tools: Any = ANTHROPIC_TOOLS[:1]
    question: Any = {"role": "user", "content": "Weather?"}
    async with anthropic.AsyncAnthropic(
        base_url=await serve(service), api_key="none", max_retries=0
    ) as client:
        says(f"<think>Hm</think>{CALL}")
        async with client.messages.stream(
            model="tiny", max_tokens=500, messages=[question], tools=tools
        ) as events:
            first = await events.get_final_message()
        call = first.content[-1]
        assert call.type == "tool_use"
        assert call.input == {"city": "Oslo"}
        says("Sun.")
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "21"}
        turns: Any = [
            question,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        second = await client.messages.create(model="tiny", max_tokens=500, messages=turns, tools=tools)
        counted = await client.messages.count_tokens(model="tiny", messages=turns, tools=tools)
    assert [block.text for block in second.content if block.type == "text"] == ["Sun."]
    assert counted.input_tokens == second.usage.input_tokens
    assert prompt_of(service, engine).endswith(
        f"<|user|>Weather?<|end|><|assistant|>Hm<tool_call>Oslo</tool_call><|end|>"
        f"<|tool|>21{call.id}<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ("required", ["get_weather", "now"]),
        ({"type": "function", "name": "now"}, ["now"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]},
            ["now"],
        ),
        ("auto", None),
        ("none", None),
    ],
)
async def test_calls_that_are_forced_in_responses(
    http: httpx2.AsyncClient, engine: FakeEngine, says: Says, choice: Any, forced: list[str] | None
) -> None:
    says(NOW)
    whole = (await http.post(test_responses.URL, json={**RESPONSES, "tool_choice": choice})).json()
    check_response(whole)
    check_forced(engine, forced)
    assert whole["output"][0]["type"] == ("message" if choice == "none" else "function_call")


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ({"type": "any"}, ["get_weather", "now"]),
        ({"type": "tool", "name": "now", "disable_parallel_tool_use": True}, ["now"]),
        ({"type": "auto"}, None),
        ({"type": "none"}, None),
    ],
)
async def test_calls_that_are_forced_in_messages(
    http: httpx2.AsyncClient, engine: FakeEngine, says: Says, choice: Any, forced: list[str] | None
) -> None:
    says(NOW)
    whole = (await http.post(test_messages.URL, json={**MESSAGES, "tool_choice": choice})).json()
    check_forced(engine, forced)
    assert whole["content"][0]["type"] == ("text" if choice["type"] == "none" else "tool_use")


def check_forced(engine: FakeEngine, names: list[str] | None) -> None:
    grammar = engine.submits[-1].grammar
    if names is None:
        assert not grammar
    else:
        assert [name for name in ("get_weather", "now") if name in grammar] == names


async def test_a_call_that_is_cut(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids(CALL.partition("Oslo")[0])
    response = (await http.post(test_responses.URL, json=RESPONSES)).json()
    assert response["status"] == "incomplete"
    assert response["output"][-1]["status"] == "incomplete"
    message = (await http.post(test_messages.URL, json=MESSAGES)).json()
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][-1]["input"] == {}


async def test_reasoning_that_is_not_wanted(
    http: httpx2.AsyncClient, service: Service, engine: FakeEngine, says: Says
) -> None:
    says("<think>Hm</think>Sun.")
    for thinking, kinds in [
        ({"type": "enabled"}, ["thinking", "text"]),
        ({"type": "adaptive", "display": "omitted"}, ["text"]),
    ]:
        message = (await http.post(test_messages.URL, json={**MESSAGES, "thinking": thinking})).json()
        assert [block["type"] for block in message["content"]] == kinds
    says("Sun.")
    await http.post(test_messages.URL, json={**MESSAGES, "thinking": {"type": "disabled"}})
    assert prompt_of(service, engine).endswith("<think></think>")
    await http.post(test_responses.URL, json={**RESPONSES, "reasoning": {"effort": "none"}})
    assert prompt_of(service, engine).endswith("<think></think>")
    await http.post(test_messages.URL, json={**MESSAGES, "output_config": {"effort": "low"}})
    assert "]low<" in prompt_of(service, engine)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (test_responses.URL, {**RESPONSES, "tools": [{"type": "function"}]}, "tools[0].name"),
    (test_responses.URL, {**RESPONSES, "tools": [{"name": "x"}]}, "tools[0].type"),
    (test_responses.URL, {**RESPONSES, "tool_choice": "always"}, "tool_choice"),
    (test_responses.URL, {**RESPONSES, "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    (test_responses.URL, {**RESPONSES, "tool_choice": {"type": "function"}}, "tool_choice.name"),
    (test_responses.URL, {**RESPONSES, "tool_choice": {"type": "function", "name": "y"}}, "tool_choice"),
    (test_responses.URL, {**RESPONSES, "tools": [{"type": "web_search"}], "tool_choice": "required"},
     "tool_choice"),
    (test_responses.URL, {**RESPONSES, "top_logprobs": 1}, "top_logprobs"),
    (test_messages.URL, {**MESSAGES, "tools": [{"input_schema": {}}]}, "tools[0].name"),
    (test_messages.URL, {**MESSAGES, "tools": [{"name": "a b"}]}, "tools"),
    (test_messages.URL, {**MESSAGES, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    (test_messages.URL, {**MESSAGES, "tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "request_", "param"), REFUSED, ids=lambda value: str(value)[-60:])
async def test_bad_requests(
    http: httpx2.AsyncClient, engine: FakeEngine, url: str, request_: dict[str, Any], param: str
) -> None:
    refused = await http.post(url, json=request_)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert not engine.submits


CODEX: dict[str, Any] = {
    "model": "tiny", "instructions": "You are a coding agent.", "stream": True, "store": False,
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandbox."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    ],
    "tools": [
        *RESPONSES_TOOLS, {"type": "local_shell"}, {"type": "custom", "name": "apply_patch", "format": {}},
    ],
    "tool_choice": "auto", "parallel_tool_calls": True, "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "medium", "summary": "auto"}, "text": {"verbosity": "low"},
    "prompt_cache_key": "k", "service_tier": "priority", "client_metadata": {"x": "y"},
}  # fmt: skip


async def test_what_an_agent_sends(
    http: httpx2.AsyncClient, service: Service, engine: FakeEngine, says: Says
) -> None:
    """As Codex does: its own kinds of tools beside functions, and the whole conversation in each request."""
    says(f"<think>Hm</think>{CALL}")
    first = test_responses.events_of((await http.post(test_responses.URL, json=CODEX)).text)
    items = [event["item"] for event in first if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert first[-1]["response"]["skipped_tools"] == ["web_search", "namespace", "local_shell", "custom"]
    says("Sun.")
    output = {"type": "function_call_output", "call_id": items[1]["call_id"], "output": "21"}
    again = {**CODEX, "input": [*CODEX["input"], *items, output]}
    second = test_responses.events_of((await http.post(test_responses.URL, json=again)).text)
    assert second[-1]["response"]["output"][0]["content"][0]["text"] == "Sun."
    assert second[-1]["response"]["store"] is False
    assert prompt_of(service, engine).endswith(
        "medium<|system|>You are a coding agent.<|end|><|system|>Sandbox.<|end|><|user|>Weather?<|end|>"
        f"<|assistant|>Hm<tool_call>Oslo</tool_call><|end|><|tool|>21{output['call_id']}<|end|><|assistant|>"
    )


OPEN_CALL = CALL[: CALL.index("Oslo") + 2]


async def test_a_call_that_never_ends_is_none_to_make(http: httpx2.AsyncClient, says: Says) -> None:
    """The model ended its answer within it."""
    says(f"{NOW}{OPEN_CALL}")
    message = (await http.post(test_messages.URL, json=MESSAGES)).json()
    assert message["stop_reason"] == "end_turn"
    assert [block["input"] for block in message["content"]] == [{}, {}]
    response = (await http.post(test_responses.URL, json=RESPONSES)).json()
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["output"][-1]["arguments"] == '{"city": "Os'


async def test_an_answer_goes_on_within_the_thinking_of_its_client(
    http: httpx2.AsyncClient, says: Says
) -> None:
    says("So: south.</think>South.")
    begun = {"role": "assistant", "content": "<think>It is autumn."}
    request = {"model": "tiny", "max_tokens": 99, "messages": [{"role": "user", "content": "Where?"}, begun]}
    message = (await http.post(test_messages.URL, json=request)).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][1]["text"] == "South."
