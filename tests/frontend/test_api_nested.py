"""Every nested row of the tables in docs/api.md is true: a member that is honoured changes something, one
that is accepted changes nothing.

A member that is added to a type needs an example here.
"""

import copy
import re
from typing import Any, NamedTuple

import httpx2
import pytest

from frontend.chat_template import ChatTemplate
from frontend.service import Service
from protocol.messages import Finish
from scripts.api_page import ACCEPTED, ENDPOINTS, HONOURED
from tests.frontend.conftest import END, MakeService, attached
from tests.frontend.fake_engine import FakeEngine
from tests.frontend.test_api_table import ALL, OBJECT, World, rows_of

MAX_MODEL_LEN = 2048
TEMPLATE = (
    "{{ messages | tojson }}{{ tools | tojson }}{{ reasoning_effort }}{{ enable_thinking }}"
    "{# <tool_call> </think> #}"
)
_ECHO = re.compile(r'"(text|reasoning)":\{"(format|effort)".*?\}(?=,"(tools|background)")')
_STEP = re.compile(r"(\w+)(\[\])?")
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
USER: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "x"}]}
SAID = {"role": "assistant", "content": "a", "name": "n", "reasoning_content": "r", "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "y", "tool_call_id": "c1"}
OTHER = {"id": "c2", "type": "function", "function": {"name": "go", "arguments": "{}"}}
FUNCTION = {"name": "look", "description": "d", "parameters": OBJECT}
TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}
TAG: dict[str, Any] = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}


class Case(NamedTuple):
    """In a request with these fields, this member gets another value; or goes, for None."""

    beside: dict[str, Any]
    value: Any
    at: int = -1
    """Of the messages or items, the one that it is a member of."""


def chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*messages]}


def chosen(choice: Any) -> dict[str, Any]:
    look, go = ({"type": "function", "function": {"name": name}} for name in ("look", "go"))
    return {"tools": [look, go], "tool_choice": choice}


LOOK = {"type": "function", "function": {"name": "look"}}
GO = {"type": "function", "function": {"name": "go"}}
MESSAGES = {
    "messages[].role": Case(chat(USER), "system"),
    "messages[].content": Case(chat(USER), "b"),
    "messages[].content[].type": Case(chat(USER), "image_url"),
    "messages[].content[].text": Case(chat(USER), "b"),
    "messages[].name": Case(chat(USER, SAID), "m"),
    "messages[].tool_calls": Case(chat(USER, SAID), None),
    "messages[].tool_calls[].function": Case(chat(USER, SAID), {"name": "go", "arguments": "{}"}),
    "messages[].tool_calls[].id": Case(chat(USER, SAID), "c2"),
    "messages[].tool_calls[].type": Case(chat(USER, SAID), "other"),
    "messages[].tool_call_id": Case(chat(USER, SAID, TOLD), "c2"),
    "messages[].reasoning_content": Case(chat(USER, SAID), "s"),
    "messages[].reasoning": Case(chat(USER, {"role": "assistant", "content": "a", "reasoning": "r"}), "s"),
}
FUNCTIONS = {
    "tools[].type": Case(TOOLS, "web_search"),
    "tools[].function": Case(TOOLS, {"name": "go"}),
    "tools[].function.name": Case(TOOLS, "go"),
    "tools[].function.description": Case(TOOLS, "e"),
    "tools[].function.parameters": Case(TOOLS, {"type": "object"}),
    "tools[].function.strict": Case({"tools": TOOLS["tools"]}, True),
}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LOOK]}}
CONSTRAINTS = {
    "stream_options.include_usage": Case({"stream": True, "stream_options": {}}, True),
    "stream_options.continuous_usage_stats": Case({"stream": True, "stream_options": {}}, True),
    "response_format.type": Case({"response_format": {"type": "text"}}, "json_object"),
    "response_format.json_schema": Case(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": OBJECT}}}, {"schema": {}}
    ),
    "response_format.json_schema.schema": Case(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": OBJECT}}}, {"type": "object"}
    ),
    "response_format.structures": Case(
        {"response_format": {"type": "structural_tag", **TAG}},
        [{**TAG["structures"][0], "end": "</b>"}],
    ),
    "response_format.triggers": Case({"response_format": {"type": "structural_tag", **TAG}}, ["<a>"]),
    "structured_outputs.json": Case({"structured_outputs": {"json": OBJECT}}, {"type": "object"}),
    "structured_outputs.json_object": Case({"structured_outputs": {}}, True),
    "structured_outputs.regex": Case({"structured_outputs": {"regex": "a"}}, "b"),
    "structured_outputs.choice": Case({"structured_outputs": {"choice": ["a"]}}, ["b"]),
    "structured_outputs.grammar": Case({"structured_outputs": {"grammar": 'start: "a"'}}, 'start: "b"'),
    "structured_outputs.structural_tag": Case(
        {"structured_outputs": {"structural_tag": TAG}}, {**TAG, "triggers": ["<a>"]}
    ),
    "structured_outputs.whitespace_pattern": Case({"structured_outputs": {"json": OBJECT}}, "[ ]?"),
    "structured_outputs.disable_any_whitespace": Case({"structured_outputs": {"json": OBJECT}}, True),
    "structured_outputs.disable_additional_properties": Case({"structured_outputs": {"json": OBJECT}}, True),
    "response_format.json_schema.name": Case(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": OBJECT}}}, "n"
    ),
    "response_format.json_schema.description": Case(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": OBJECT}}}, "d"
    ),
    "response_format.json_schema.strict": Case(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": OBJECT}}}, True
    ),
    "structured_outputs.disable_fallback": Case({"structured_outputs": {"json": OBJECT}}, True),
}


def items(*given: dict[str, Any]) -> dict[str, Any]:
    return {"input": [*given]}


def text(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "schema": OBJECT, **fields}}}


SPOKEN = {"role": "user", "content": [{"type": "input_text", "text": "x"}]}
REFUSED = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}
UNTHINKABLE = {"type": "reasoning", "summary": [{"type": "refusal", "refusal": "s"}]}
CALLED = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
FOUND = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "y"}]}
NOTHING = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "refusal", "refusal": "y"}]}
FLAT: dict[str, Any] = {
    "tools": [{"type": "function", "name": "look", "description": "d", "parameters": OBJECT}],
    "tool_choice": "required",
}


def flat_choice(choice: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": name} for name in ("look", "go")], "tool_choice": choice}


FLAT_ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]}
RESPONSES = {
    "input[].type": Case(items(SPOKEN), "computer_call"),
    "input[].role": Case(items(SPOKEN), "developer"),
    "input[].content": Case(items(SPOKEN), "b"),
    "input[].content[].type": Case(items(SPOKEN), "input_image"),
    "input[].content[].text": Case(items(SPOKEN), "b"),
    "input[].content[].refusal": Case(items(REFUSED), "never"),
    "input[].summary": Case(items(SPOKEN, THOUGHT), []),
    "input[].summary[].type": Case(items(SPOKEN, THOUGHT), "image"),
    "input[].summary[].text": Case(items(SPOKEN, THOUGHT), "t"),
    "input[].summary[].refusal": Case(items(SPOKEN, UNTHINKABLE), "t"),
    "input[].call_id": Case(items(SPOKEN, CALLED, FOUND), "c2", 1),
    "input[].name": Case(items(SPOKEN, CALLED, FOUND), "go", 1),
    "input[].arguments": Case(items(SPOKEN, CALLED, FOUND), '{"a": 1}', 1),
    "input[].output": Case(items(SPOKEN, CALLED, FOUND), "z"),
    "input[].output[].type": Case(items(SPOKEN, CALLED, FOUND), "input_image"),
    "input[].output[].text": Case(items(SPOKEN, CALLED, FOUND), "z"),
    "input[].output[].refusal": Case(items(SPOKEN, CALLED, NOTHING), "z"),
    "text.format": Case(text(), None),
    "text.format.type": Case(text(), "json_object"),
    "text.format.schema": Case(text(), {"type": "object"}),
    "reasoning.effort": Case({"reasoning": {"effort": "low"}}, "high"),
    "tools[].type": Case(FLAT, "web_search"),
    "tools[].name": Case(FLAT, "go"),
    "tools[].description": Case(FLAT, "e"),
    "tools[].parameters": Case(FLAT, {"type": "object"}),
    "tools[].strict": Case({"tools": FLAT["tools"]}, True),
    "tool_choice.type": Case(flat_choice({"type": "function", "name": "look"}), "mcp"),
    "tool_choice.name": Case(flat_choice({"type": "function", "name": "look"}), "go"),
    "tool_choice.mode": Case(flat_choice(FLAT_ALLOWED), "auto"),
    "tool_choice.tools": Case(flat_choice(FLAT_ALLOWED), []),
    "tool_choice.tools[].type": Case(flat_choice(FLAT_ALLOWED), "mcp"),
    "tool_choice.tools[].name": Case(flat_choice(FLAT_ALLOWED), "go"),
    "text.format.name": Case(text(), "n"),
    "text.format.description": Case(text(), "d"),
    "text.format.strict": Case(text(), True),
    "text.verbosity": Case({"text": {}}, "low"),
    "reasoning.summary": Case({"reasoning": {}}, "auto"),
}
USES = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "y"}]}
MUSES = {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}]}
ANTHROPIC: dict[str, Any] = {
    "tools": [{"name": "look", "description": "d", "input_schema": OBJECT}], "tool_choice": {"type": "any"}
}  # fmt: skip


def either(choice: Any) -> dict[str, Any]:
    return {"tools": [{"name": "look"}, {"name": "go"}], "tool_choice": choice}


COUNTED = {
    "messages[].role": Case(chat(USER), "system"),
    "messages[].content": Case(chat(USER), "b and more"),
    "messages[].content[].type": Case(chat(USER), "image"),
    "messages[].content[].text": Case(chat(USER), "b and more"),
    "messages[].content[].thinking": Case(chat(USER, MUSES, USER), "u and more", 1),
    "messages[].content[].id": Case(chat(USER, USES, RESULT), "t2", 1),
    "messages[].content[].name": Case(chat(USER, USES, RESULT), "go there", 1),
    "messages[].content[].input": Case(chat(USER, USES, RESULT), {}, 1),
    "messages[].content[].tool_use_id": Case(chat(USER, USES, RESULT), "t2"),
    "messages[].content[].content": Case(chat(USER, USES, RESULT), "z and more"),
    "messages[].content[].is_error": Case(chat(USER, USES, RESULT), True),
    "system[].type": Case({"system": [{"type": "text", "text": "s"}]}, "image"),
    "system[].text": Case({"system": [{"type": "text", "text": "s"}]}, "t and more"),
    "tools[].name": Case(ANTHROPIC, "go there"),
    "tools[].type": Case(ANTHROPIC, "web_search_20250305"),
    "tools[].description": Case(ANTHROPIC, "e and more"),
    "tools[].input_schema": Case(ANTHROPIC, {"type": "object"}),
    "tool_choice.type": Case(either({"type": "any"}), "none"),
    "tool_choice.name": Case(either({"type": "tool", "name": "look"}), "go"),
    "thinking.type": Case({"thinking": {"type": "enabled"}}, "disabled"),
    "output_config.effort": Case({"output_config": {}}, "low"),
}
FORMAT = {"output_config": {"format": {"type": "json_schema", "schema": OBJECT}}}
CASES: dict[str, dict[str, Case]] = {
    "/v1/chat/completions": MESSAGES
    | FUNCTIONS
    | CONSTRAINTS
    | {
        "tool_choice.type": Case(chosen({**ALLOWED, **GO, "type": "function"}), "allowed_tools"),
        "tool_choice.function": Case(chosen(LOOK), {"name": "go"}),
        "tool_choice.function.name": Case(chosen(LOOK), "go"),
        "tool_choice.allowed_tools": Case(chosen(ALLOWED), None),
        "tool_choice.allowed_tools.mode": Case(chosen(ALLOWED), "auto"),
        "tool_choice.allowed_tools.tools": Case(chosen(ALLOWED), []),
    },
    "/v1/completions": CONSTRAINTS,
    "/v1/responses": RESPONSES,
    "/v1/messages": COUNTED
    | {
        "tools[].strict": Case({"tools": ANTHROPIC["tools"]}, True),
        "tool_choice.disable_parallel_tool_use": Case(either({"type": "any"}), True),
        "thinking.budget_tokens": Case({"thinking": {"type": "enabled"}}, 10),
        "thinking.display": Case({"thinking": {"type": "enabled"}}, "omitted"),
        "output_config.format": Case(FORMAT, None),
        "output_config.format.type": Case(FORMAT, "xml"),
        "output_config.format.schema": Case(FORMAT, {"type": "object"}),
    },
    "/v1/messages/count_tokens": COUNTED
    | {
        "tools[].strict": Case({"tools": ANTHROPIC["tools"]}, True),
        "tool_choice.disable_parallel_tool_use": Case(either({"type": "any"}), True),
        "thinking.budget_tokens": Case({"thinking": {"type": "enabled"}}, 10),
        "thinking.display": Case({"thinking": {"type": "enabled"}}, "omitted"),
        "output_config.format": Case(FORMAT, None),
        "output_config.format.type": Case(FORMAT, "json_schema"),
        "output_config.format.schema": Case(FORMAT, {"type": "object"}),
    },
    "/tokenize": {
        field: Case({"prompt": None, **chat(USER), **case.beside}, case.value, case.at)
        for field, case in (MESSAGES | FUNCTIONS).items()
    },
}
TESTED_ELSEWHERE = {"input[].id": "test_input_items.py"}


def changed(field: str, case: Case) -> dict[str, Any]:
    """With another value of that member, of the last of each list."""
    body, value = copy.deepcopy(case.beside), case.value
    *way, last = _STEP.findall(field)
    place: Any = body
    for name, many in way:
        place = place[name][case.at if name in ("messages", "input") else -1] if many else place[name]
    if value is None:
        del place[last[0]]
    else:
        place[last[0]] = value
    return body


@pytest.fixture
async def service(make_service: MakeService, engine: FakeEngine) -> Service:
    return await attached(make_service(template=ChatTemplate(TEMPLATE, {})), engine)


@pytest.fixture
def world(http: httpx2.AsyncClient, engine: FakeEngine, path: str, ids: Any) -> World:
    engine.answer, engine.finish = [*ids("<think>hm</think>a"), END], Finish.STOP
    engine.tokens_per_message = len(engine.answer)  # the same events each time
    return World(http, engine, path)


@ALL
async def test_members_are_as_the_page_says(world: World, path: str) -> None:
    cases = CASES.get(path, {})
    for treatment in (HONOURED, ACCEPTED):
        fields = {field for field in rows_of(ENDPOINTS[path], treatment) if "." in field}
        assert fields <= cases.keys() | TESTED_ELSEWHERE.keys(), "each member needs an example"
        for field in sorted(fields - TESTED_ELSEWHERE.keys()):
            before = await world.effect(**cases[field].beside)
            assert before[0] == 200, (field, before[1])
            after = await world.effect(**changed(field, cases[field]))
            if treatment == ACCEPTED:  # what is only sent back is no effect
                before, after = ((one[0], _ECHO.sub("", one[1]), one[2]) for one in (before, after))
            assert (after != before) is (treatment == HONOURED), (field, after)
