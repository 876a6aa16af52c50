"""Every row of the tables in docs/api.md is true: what is honoured changes something, what is refused is a
400 that names it, what is accepted changes nothing.

A field that is added to a type needs an example here.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import pytest
from msgspec import structs

from frontend.chat_template import ChatTemplate
from frontend.service import Service
from protocol.messages import Finish, Submit
from scripts.api_page import ACCEPTED, ENDPOINTS, HONOURED, REFUSED, Endpoint, rows
from tests.frontend.conftest import END, MakeService, attached
from tests.frontend.fake_engine import FakeEngine

USER = {"role": "user", "content": "x"}
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LOOK = {"type": "function", "function": {"name": "look"}}
WAIT = {"type": "function", "function": {"name": "wait"}}
TEMPLATE = (
    "{{ bos_token }}{{ mood }}{{ reasoning_effort }}{{ enable_thinking }}{{ tools | length if tools }}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{# <think></think> #}"
)
ANY = {"type": "any"}
ASSISTANT = [USER, {"role": "assistant", "content": "I"}]
_FLEETING = re.compile(r'"(id|created|created_at|completed_at|item_id|call_id|request_id)":("[^"]*"|\d+)')


class Example(NamedTuple):
    """A value that changes something, in a request that also has `beside`."""

    value: Any
    beside: Mapping[str, Any] = MappingProxyType({})


GENERATING = {
    "model": Example("nobody serves this"),
    "stream": Example(True),
    "stream_options": Example({"include_usage": True}, {"stream": True}),
    "stream_options.include_usage": Example(True, {"stream": True}),
    "stream_options.continuous_usage_stats": Example(True, {"stream": True}),
    "n": Example(2),
    "max_tokens": Example(2),
    "min_tokens": Example(1),
    "temperature": Example(0.5),
    "top_p": Example(0.5),
    "top_k": Example(3),
    "min_p": Example(0.5),
    "presence_penalty": Example(1),
    "frequency_penalty": Example(1),
    "repetition_penalty": Example(1.5),
    "seed": Example(2),
    "stop": Example("b"),
    "stop_token_ids": Example([50]),
    "include_stop_str_in_output": Example(True, {"stop": "b"}),
    "ignore_eos": Example(True),
    "skip_special_tokens": Example(False),
    "logit_bias": Example({"50": 1}),
    "allowed_token_ids": Example([50]),
    "bad_words": Example(["b"]),
    "prompt_logprobs": Example(1),
    "return_token_ids": Example(True),
    "truncate_prompt_tokens": Example(1),
    "priority": Example(1),
    "cache_salt": Example("s"),
    "response_format": Example({"type": "json_object"}),
    "structured_outputs": Example({"regex": "a+"}),
    "guided_json": Example(OBJECT),
    "guided_regex": Example("a+"),
    "guided_choice": Example(["a", "b"]),
    "guided_grammar": Example('start: "a"'),
    "guided_whitespace_pattern": Example("[ ]?", {"guided_json": OBJECT}),
}
EXAMPLES: dict[str, dict[str, Example]] = {
    "/v1/chat/completions": GENERATING
    | {
        "logprob_token_ids": Example([60], {"logprobs": True}),
        "messages": Example([{"role": "user", "content": "other"}]),
        "max_completion_tokens": Example(2),
        "logprobs": Example(True),
        "top_logprobs": Example(2, {"logprobs": True}),
        "return_tokens_as_token_ids": Example(True, {"logprobs": True}),
        "tools": Example([LOOK, WAIT], {"tools": [LOOK], "tool_choice": "required"}),
        "tool_choice": Example("required", {"tools": [LOOK], "tool_choice": "none"}),
        "parallel_tool_calls": Example(False, {"tools": [LOOK], "tool_choice": "required"}),
        "include_reasoning": Example(False),
        "separate_reasoning": Example(False),
        "reasoning_effort": Example("low"),
        "add_generation_prompt": Example(False),
        "continue_final_message": Example(True, {"messages": ASSISTANT, "add_generation_prompt": False}),
        "add_special_tokens": Example(True),
        "chat_template_kwargs": Example({"mood": "merry"}),
        "thinking_token_budget": Example(3),
    },
    "/v1/completions": GENERATING
    | {
        "logprob_token_ids": Example([60], {"logprobs": 0}),
        "prompt": Example([5, 6]),
        "best_of": Example(2),
        "echo": Example(True),
        "logprobs": Example(1),
        "return_tokens_as_token_ids": Example(True, {"logprobs": 0}),
        "add_special_tokens": Example(False),
    },
    "/v1/embeddings": {
        "model": Example("nobody serves this"),
        "input": Example([5, 7]),
        "encoding_format": Example("base64"),
        "dimensions": Example(2),
        "add_special_tokens": Example(False),
        "truncate_prompt_tokens": Example(1),
        "priority": Example(1),
        "cache_salt": Example("s"),
    },
    "/tokenize": {
        "model": Example("nobody serves this"),
        "prompt": Example("other"),
        "messages": Example(ASSISTANT, {"prompt": None, "messages": [USER]}),
        "add_special_tokens": Example(False),
        "add_generation_prompt": Example(False, {"prompt": None, "messages": [USER]}),
        "continue_final_message": Example(
            True, {"prompt": None, "messages": ASSISTANT, "add_generation_prompt": False}
        ),
        "chat_template_kwargs": Example({"mood": "merry"}, {"prompt": None, "messages": [USER]}),
        "tools": Example([LOOK], {"prompt": None, "messages": [USER]}),
        "return_token_strs": Example(True),
    },
    "/detokenize": {"model": Example("nobody serves this"), "tokens": Example([51])},
}
SAMPLED = {
    name: GENERATING[name] for name in ("temperature", "top_p", "top_k", "seed", "priority", "cache_salt")
}
RESPONSES_LOOK = {"type": "function", "name": "look"}
EXAMPLES["/v1/responses"] = SAMPLED | {
    "truncation": Example("auto"),
    **{name: GENERATING[name] for name in ("model", "stream", "min_p", "repetition_penalty")},
    **{name: GENERATING[name] for name in ("presence_penalty", "frequency_penalty")},
    "input": Example([USER, {"type": "reasoning", "summary": []}, USER]),
    "instructions": Example("Be brief."),
    "previous_response_id": Example("resp_of_nobody"),
    "store": Example(False),
    "metadata": Example({"a": "b"}),
    "max_output_tokens": Example(2),
    "top_logprobs": Example(1),
    "include": Example(["message.output_text.logprobs"]),
    "text": Example({"format": {"type": "json_object"}}),
    "reasoning": Example({"effort": "low"}),
    "tools": Example(
        [RESPONSES_LOOK, {"type": "mcp"}], {"tools": [RESPONSES_LOOK], "tool_choice": "required"}
    ),
    "tool_choice": Example("required", {"tools": [RESPONSES_LOOK], "tool_choice": "none"}),
    "parallel_tool_calls": Example(False, {"tools": [RESPONSES_LOOK], "tool_choice": "required"}),
    "chat_template_kwargs": Example({"mood": "merry"}),
}
EXAMPLES["/v1/messages"] = SAMPLED | {
    **{name: GENERATING[name] for name in ("model", "stream", "max_tokens")},
    "messages": Example(ASSISTANT),
    "system": Example("Be brief."),
    "stop_sequences": Example(["b"]),
    "thinking": Example({"type": "disabled"}),
    "output_config": Example({"effort": "low"}),
    "tools": Example([{"name": "look"}, {"name": "go"}], {"tools": [{"name": "look"}], "tool_choice": ANY}),
    "tool_choice": Example(ANY, {"tools": [{"name": "look"}], "tool_choice": {"type": "none"}}),
    "chat_template_kwargs": Example({"mood": "merry"}),
}
EXAMPLES["/v1/messages/count_tokens"] = {
    name: EXAMPLES["/v1/messages"][name]
    for name in ("model", "messages", "system", "thinking", "output_config", "chat_template_kwargs")
} | {
    "tools": Example([{"name": "look"}]),
    "tool_choice": Example({"type": "none"}, {"tools": [{"name": "look"}]}),
}
TESTED_ELSEWHERE = {"background", "stream_interval"}
"""What comes together depends on time: see test_fields.py."""
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 60, "seed": 1},
    "/v1/completions": {"prompt": "a tern", "max_tokens": 60, "seed": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 60, "seed": 1},
    "/v1/messages": {"model": "tiny", "messages": [USER], "max_tokens": 60, "seed": 1},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": [USER]},
    "/v1/embeddings": {"input": "a tern"},
    "/tokenize": {"prompt": "a tern"},
    "/detokenize": {"tokens": [50]},
}
ALL = pytest.mark.parametrize("path", ENDPOINTS)


class World:
    """One frontend, and what requests do to it."""

    def __init__(self, http: httpx2.AsyncClient, engine: FakeEngine, path: str) -> None:
        self._http = http
        self._engine = engine
        self._path = path

    async def send(self, **fields: Any) -> httpx2.Response:
        return await self._http.post(self._path, json=BASE[self._path] | fields)

    async def effect(self, **fields: Any) -> tuple[int, str, list[Submit]]:
        """(status, body, what the engine core was asked), without what is new in each request."""
        self._engine.submits.clear()
        response = await self.send(**fields)
        submits = [structs.replace(one, request_id=0) for one in self._engine.submits if not one.again]
        return response.status_code, _FLEETING.sub("", response.text), submits


def rows_of(endpoint: Endpoint, treatment: str) -> list[str]:
    return [row.field for row in rows(endpoint) if row.treatment == treatment]


@pytest.fixture
async def service(make_service: MakeService, engine: FakeEngine) -> Service:
    template = ChatTemplate(TEMPLATE, {"bos_token": "<|bos|>"})
    return await attached(make_service(template=template), engine)


@pytest.fixture
def world(http: httpx2.AsyncClient, engine: FakeEngine, path: str, ids: Any) -> World:
    engine.answer, engine.finish = [*ids("<think>hm</think>a<|user|>b"), END], Finish.STOP
    engine.tokens_per_message = len(engine.answer)  # the same events each time
    return World(http, engine, path)


def nested(field: str, value: Any) -> dict[str, Any]:
    """`a.b` as {"a": {"b": value}}."""
    for name in reversed(field.split(".")):
        value = {name: value}
    found: dict[str, Any] = value
    return found


@ALL
async def test_what_is_honoured_changes_something(world: World, path: str) -> None:
    examples = EXAMPLES[path]
    fields = [field for field in rows_of(ENDPOINTS[path], HONOURED) if "." not in field]
    assert set(fields) <= examples.keys() | TESTED_ELSEWHERE, "each field needs an example"
    for field, (value, beside) in examples.items():
        without = await world.effect(**beside)
        assert without[0] == 200, (beside, without[1])
        assert await world.effect(**{**beside, **nested(field, value)}) != without, field
        if field not in BASE[path] and field not in beside:
            assert await world.effect(**beside, **{field: None}) == without, field


@ALL
async def test_what_is_refused_is_named(world: World, path: str) -> None:
    before = await world.effect()
    assert rows_of(ENDPOINTS[path], REFUSED) == list(ENDPOINTS[path].refused)
    for name, refusal in ENDPOINTS[path].refused.items():
        response = await world.send(**{name: ["something"]})
        assert response.status_code == 400, name
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        assert refusal.remedy in error["message"]
        for harmless in (None, *refusal.harmless):
            assert await world.effect(**{name: harmless}) == before, (name, harmless)


@ALL
async def test_what_is_accepted_changes_nothing(world: World, path: str) -> None:
    before = await world.effect()
    for field in rows_of(ENDPOINTS[path], ACCEPTED):
        if "." not in field:
            given = True if field == "stream" else "something"
            assert await world.effect(**{field: given}) == before, field
    assert await world.effect(nobody_knows_this=[1, {"a": None}]) == before
