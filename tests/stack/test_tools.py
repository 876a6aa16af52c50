"""Tools, with real models: the bundled one, which was taught them, and one of random weights."""

import asyncio
import json
import os
import re
import subprocess
import sys
from typing import Any

import jsonschema_rs
import openai
import pytest

from scripts.bundled_tasks import held_out_samples
from scripts.tasks.tool_calls import TOOLS
from tests.conftest import ROOT
from tests.stack.conftest import Serve, Stack
from tests.stack.streams import OnText, nothing, once

PAGE = (ROOT / "docs" / "tools.md").read_text()
DEADLINE_S = 120
CHOICE = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "large", None]},
        "places": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "fast": {"type": "boolean"},
    },
    "required": ["size", "places", "fast"],
}


def tool(name: str, parameters: dict[str, Any] | None = None, **fields: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


def test_the_example_of_the_page(bundled: Stack) -> None:
    """Two requests of the openai package: the call, and with its result the answer."""
    [code] = re.findall(r"<!-- run: tools -->\n```python\n(.*?)```", PAGE, re.S)
    code = code.replace("http://127.0.0.1:8000", bundled.base_url).replace("tern-mini", bundled.model)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "get_weather {'city': 'Oslo'}\nIt is 21 degrees in Oslo.\n"


async def test_calls_that_the_model_was_taught(bundled: Stack) -> None:
    """Held-out requests, streamed by the package's own helper; greedy, of its own accord and forced."""
    samples = [sample for sample in held_out_samples(10) if sample.task == "tool_call"]
    tools = [tool(name, {"type": "object"}) for name in TOOLS]
    right = []
    async with bundled.async_client() as client:
        for sample in samples:
            wanted = json.loads(sample.answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            question: Any = [message for message in sample.messages if message["role"] == "user"]
            for choice in ("auto", "required"):
                async with client.chat.completions.stream(
                    model=bundled.model,
                    messages=question,
                    tools=tools,
                    tool_choice=choice,
                    parallel_tool_calls=choice == "auto",
                    temperature=0,
                    max_tokens=100,
                ) as stream:
                    final = await stream.get_final_completion()
                answer = final.choices[0]
                assert answer.finish_reason == "tool_calls"
                called = [
                    (one.function.name, json.loads(one.function.arguments))
                    for one in answer.message.tool_calls or []
                ]
                right.append(called == [(wanted["name"], wanted["arguments"])])
    assert sum(right) >= len(right) - 2, right


async def test_forced_calls_are_valid_at_any_temperature(bundled: Stack) -> None:
    tools = [tool("choose", CHOICE), tool("get_time")]
    schemas: dict[str, dict[str, Any]] = {
        "choose": CHOICE,
        "get_time": {"type": "object", "maxProperties": 0},
    }
    question: Any = [{"role": "user", "content": "What time is it in Oslo?"}]
    async with bundled.async_client() as client:
        for parallel in (True, False):
            answer = await client.chat.completions.create(
                model=bundled.model, messages=question, tools=tools, tool_choice="required", n=4, seed=1,
                parallel_tool_calls=parallel, temperature=2, max_tokens=400,
            )  # fmt: skip
            for one in answer.choices:
                calls = one.message.tool_calls or []
                assert calls
                assert parallel or (len(calls) == 1 and one.finish_reason == "tool_calls")
                for call in calls if one.finish_reason != "length" else calls[:-1]:
                    assert call.type == "function"
                    jsonschema_rs.validate(schemas[call.function.name], json.loads(call.function.arguments))


async def test_strict_calls_follow_their_schema_when_the_model_would_not(bundled: Stack) -> None:
    """It was taught that this tool takes a city."""
    question: Any = [{"role": "user", "content": "What time is it in Oslo?"}]
    found = []
    async with bundled.async_client() as client:
        for strict in (False, True):
            tools = [tool("get_time", CHOICE, strict=strict)]
            answer = await client.chat.completions.create(
                model=bundled.model, messages=question, tools=tools, temperature=0, max_tokens=200
            )
            [call] = answer.choices[0].message.tool_calls or []
            assert call.type == "function"
            found.append(json.loads(call.function.arguments))
        spelled = await client.chat.completions.create(
            model=bundled.model, messages=[{"role": "user", "content": 'Spell the word "tern".'}],
            tools=tools, temperature=0,
        )  # fmt: skip
    assert found[0] == {"city": "Oslo"}
    jsonschema_rs.validate(CHOICE, found[1])
    assert spelled.choices[0].message.content == "t-e-r-n", "what is no call stays free"


async def test_a_model_of_random_weights_calls_what_it_must(serve: Serve) -> None:
    stack = serve(worker="torch")
    question: Any = [{"role": "user", "content": "x"}]
    tools = [tool("first", CHOICE), tool("second", CHOICE)]
    async with stack.async_client() as client:
        answer = await client.chat.completions.create(
            model=stack.model, messages=question, tools=tools, n=4, seed=5, max_tokens=300,
            tool_choice={"type": "function", "function": {"name": "second"}},
        )  # fmt: skip
        for one in answer.choices:
            assert one.finish_reason == "tool_calls"
            [call] = one.message.tool_calls or []
            assert call.type == "function"
            assert call.function.name == "second"
            jsonschema_rs.validate(CHOICE, json.loads(call.function.arguments))
        with pytest.raises(openai.BadRequestError, match="no place for tools"):
            await client.chat.completions.create(model=stack.model, messages=question, tools=tools)


async def stream_call(client: openai.AsyncOpenAI, model: str, on_text: OnText = nothing) -> tuple[str, str]:
    """Name and arguments of a long call."""
    text = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^[a-z]{400}$"}}}
    question: Any = [{"role": "user", "content": "Write."}]
    stream = await client.chat.completions.create(
        model=model, messages=question, tools=[tool("write", {**text, "required": ["text"]})], stream=True,
        tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=1000,
    )  # fmt: skip
    name = arguments = ""
    reasons = []
    async for chunk in stream:
        choice = chunk.choices[0]
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
            on_text(len(arguments))
        reasons.append(choice.finish_reason)
    assert reasons[-1] == "tool_calls"
    return name, arguments


async def test_the_worker_dies_in_the_middle_of_a_call(bundled: Stack) -> None:
    async with bundled.async_client() as client:
        expected = await stream_call(client, bundled.model)
        struck, beside = await asyncio.gather(
            stream_call(client, bundled.model, once(lambda: bundled.kill("worker"))),
            stream_call(client, bundled.model),
        )
    assert (struck, beside) == (expected, expected)
    assert expected[0] == "write"
    assert len(json.loads(expected[1])["text"]) == 400
    bundled.program.wait_for("was killed by SIGKILL; starting it again")
