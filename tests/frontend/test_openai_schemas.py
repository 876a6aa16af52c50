"""Every document and every event that OpenAI's clients read, against OpenAI's own published document.

openai_schemas.json names its source and licence. What we send beyond it is listed here, and so is where the
document contradicts the service that it describes.
"""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from frontend.chat_template import ChatTemplate
from frontend.service import Service
from protocol.messages import Finish
from tests.frontend.conftest import END, MakeService, attached
from tests.frontend.fake_engine import FakeEngine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "x"}]
LOOK = {"type": "function", "function": {"name": "look"}}
CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    "{# <tool_call> <think></think> {{ tools }} #}"
)
OURS = {
    "": {"prompt_token_ids", "prompt_logprobs"},
    "choices": {"token_ids", "prompt_token_ids", "prompt_logprobs"},
    "choices.delta": {"reasoning_content", "reasoning"},
    "choices.message": {"reasoning_content", "reasoning"},
    "data": {"max_model_len", "root", "parent"},
}
"""Members that OpenAI has not, by where they stand: clients of vLLM and others read them."""


def relaxed(value: Any) -> Any:
    """`nullable` is of OpenAPI 3.0 and means nothing in the 3.1 that the document says it is."""
    if isinstance(value, list):
        return [relaxed(one) for one in value]
    if not isinstance(value, dict):
        return value
    plain = {key: relaxed(one) for key, one in value.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if value.get("nullable") is True else plain


def schemas() -> dict[str, Any]:
    document = json.loads((Path(__file__).parent / "openai_schemas.json").read_text())
    found: dict[str, Any] = relaxed(document["components"]["schemas"])
    # A stream of completions has events that finish nothing, and the first token of an echoed prompt has no
    # log-probability: the service sends null for both, which the document forgets.
    choice = found["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]
    choice["finish_reason"] = {"anyOf": [choice["finish_reason"], {"type": "null"}]}
    columns = choice["logprobs"]["anyOf"][0]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        columns[name]["items"] = {"anyOf": [columns[name]["items"], {"type": "null"}]}
    return found


SCHEMAS = schemas()


def check(kind: str, document: Any) -> None:
    """Raises what is wrong with it, or with a member that is neither OpenAI's nor listed as ours."""
    jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{kind}", "components": {"schemas": SCHEMAS}}
    ).validate(document)
    for where, name in strangers({"$ref": kind}, document, ""):
        assert name in OURS.get(where, ()), f"{where}.{name}"


def strangers(schema: dict[str, Any], value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(where, name) of each member of an object that its schema does not know."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", ()):
        if one.get("type") != "null":
            yield from strangers(one, value, where)
    if isinstance(value, list) and "items" in schema:
        for one in value:
            yield from strangers(schema["items"], one, where)
    if isinstance(value, dict) and "properties" in schema:
        for name, one in value.items():
            if name not in schema["properties"]:
                yield where, name
            else:
                yield from strangers(schema["properties"][name], one, f"{where}.{name}".removeprefix("."))


@pytest.fixture
async def service(make_service: MakeService, engine: FakeEngine) -> Service:
    return await attached(make_service(template=ChatTemplate(TEMPLATE, {})), engine)


@pytest.fixture
def says(engine: FakeEngine, ids: Any) -> Any:
    def say(text: str, finish: Finish = Finish.STOP) -> None:
        engine.answer, engine.finish = [*ids(text), END], finish

    return say


CASES: list[tuple[str, str, dict[str, Any]]] = [
    (CHAT, "hello 🐦", {}),
    (CHAT, "hello 🐦", {"n": 2, "logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}),
    (CHAT, "hello", {"max_tokens": 1, "logprobs": True}),
    (CHAT, "hello", {"stop": "lo", "return_token_ids": True}),
    (CHAT, "<think>hm</think>hello", {}),
    (CHAT, f"well {CALL}", {"tools": [LOOK], "tool_choice": "required"}),
    (TEXT, "hello 🐦", {}),
    (TEXT, "hello", {"n": 2, "logprobs": 2, "echo": True}),
    (TEXT, "hello", {"max_tokens": 1, "return_token_ids": True}),
    (TEXT, "hello", {"stop": "lo"}),
]
STREAMED: list[dict[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stream_interval": 3},
]


async def test_whole_answers(http: httpx2.AsyncClient, says: Any) -> None:
    for url, text, fields in CASES:
        says(text)
        extra = {"prompt_logprobs": 1} if "return_token_ids" in fields else {}
        response = await http.post(url, json={"messages": USER, "prompt": "x", **fields, **extra})
        assert response.status_code == 200, response.text
        check("CreateChatCompletionResponse" if url == CHAT else "CreateCompletionResponse", response.json())


@pytest.mark.parametrize("key", [False, True])
async def test_every_event(live: httpx2.AsyncClient, says: Any, key: bool) -> None:
    seen = {"tool_calls": 0, "usage": 0, "logprobs": 0, "reasoning_content": 0}
    for number, (url, text, fields) in enumerate(CASES):
        says(text)
        for more in STREAMED:
            headers = {"Idempotency-Key": f"{number} {more}".replace(" ", "")} if key else {}
            body = {"messages": USER, "prompt": "x", "stream": True, **fields, **more}
            async with live.stream("POST", url, json=body, headers=headers) as response:
                lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
            assert lines.pop() == "data: [DONE]", lines
            for line in lines:
                check(
                    "CreateChatCompletionStreamResponse" if url == CHAT else "CreateCompletionResponse",
                    json.loads(line.removeprefix("data: ")),
                )
                for name in seen:
                    seen[name] += f'"{name}":{{' in line or f'"{name}":[' in line or f'"{name}":"' in line
    assert all(seen.values()), seen


async def test_the_others(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    check("ListModelsResponse", (await http.get("/v1/models")).json())
    card = (await http.get("/v1/models/org%2Ftiny")).json()
    assert card == (await http.get("/v1/models/org/tiny")).json()
    check("ListModelsResponse", {"object": "list", "data": [card]})
    check("CreateEmbeddingResponse", (await http.post("/v1/embeddings", json={"input": ["a", "b"]})).json())
    for url, body in (("/v1/models/nobody", None), (CHAT, {"messages": 5}), ("/nowhere", {})):
        response = await (http.get(url) if body is None else http.post(url, json=body))
        assert response.status_code in (400, 404)
        check("ErrorResponse", response.json())


async def collect(lines: AsyncIterator[str], found: list[str]) -> None:
    async for line in lines:
        found.append(line)


async def test_an_error_in_mid_stream(live: httpx2.AsyncClient, engine: FakeEngine, ids: Any) -> None:
    engine.answer, engine.pause_at = ids("hello there"), 1
    body = {"messages": USER, "stream": True}
    async with live.stream("POST", CHAT, json=body) as response:
        lines = response.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                break
        engine.refuse(engine.submits[0].request_id, "internal_error", "a defect")
        rest: list[str] = []
        with pytest.raises(httpx2.RemoteProtocolError):  # never a clean end
            await collect(lines, rest)
    errors = [line for line in rest if line.startswith("data: ")]
    check("ErrorResponse", json.loads(errors[-1].removeprefix("data: ")))


def test_the_check_sees_what_is_wrong() -> None:
    chunk: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
    }
    kind = "CreateChatCompletionStreamResponse"
    check(kind, chunk)
    for wrong in ({"created": "1"}, {"system_fingerprint": None}, {"choices": [{"index": 0}]}):
        with pytest.raises(jsonschema_rs.ValidationError):
            check(kind, chunk | wrong)
    with pytest.raises(AssertionError, match="unheard_of"):
        check(kind, chunk | {"unheard_of": 1})
