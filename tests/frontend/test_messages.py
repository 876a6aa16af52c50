"""/v1/messages with the real anthropic library, against this frontend and a scripted engine core."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from frontend.service import Service
from protocol.messages import Finish, Refused
from tests.frontend.conftest import END, MakeService, Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine
from tests.frontend.test_responses import prompt_of

Ids = Callable[[str], list[int]]
URL = "/v1/messages"
TEXT = "From pole to pole 🐦 and back."
ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": "x"}]}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
async def client(service: Service, serve: Serve) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=await serve(service), api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
def bird(engine: FakeEngine, ids: Ids) -> FakeEngine:
    engine.answer, engine.finish = [*ids(TEXT), END], Finish.STOP
    return engine


def events_of(text: str) -> list[dict[str, Any]]:
    """Of a stream; each is checked, strictly, against the library's types."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "ping":
            EVENT.validate_json(data.removeprefix("data: "), strict=True)
        events.append(event)
    return events


async def test_it_answers(client: anthropic.AsyncAnthropic, service: Service, bird: FakeEngine) -> None:
    bird.num_cached = 3
    message = await client.messages.create(
        model="tiny", max_tokens=50, system="Be brief.", messages=[{"role": "user", "content": "Hello"}]
    )
    assert [block.text for block in message.content if block.type == "text"] == [TEXT]
    assert message.stop_reason == "end_turn"
    assert message.usage.cache_read_input_tokens == 3
    prompt = "<|bos|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>"
    assert prompt_of(service, bird) == prompt
    counted = await client.messages.count_tokens(
        model="tiny", system="Be brief.", messages=[{"role": "user", "content": "Hello"}]
    )
    assert counted.input_tokens == message.usage.input_tokens + 3


async def test_the_events_and_their_order(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    events = events_of((await http.post(URL, json={**ASK, "stream": True})).text)
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == TEXT
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["usage"]["output_tokens"] == len(bird.answer)
    whole = await http.post(URL, json=ASK)
    Message.model_validate_json(whole.text, strict=True)


async def test_the_librarys_streams(client: anthropic.AsyncAnthropic, bird: FakeEngine) -> None:
    async with client.messages.stream(**ASK) as stream:
        assert "".join([text async for text in stream.text_stream]) == TEXT
        final = await stream.get_final_message()
    assert final.stop_reason == "end_turn"

    def ask(url: str) -> None:
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as blocking:
            with blocking.messages.stream(**ASK) as events:
                assert events.get_final_text() == TEXT
            assert blocking.messages.create(**ASK).stop_reason == "end_turn"

    await asyncio.to_thread(ask, str(client.base_url))


@pytest.mark.parametrize("stream", [False, True])
async def test_why_it_stopped(http: httpx2.AsyncClient, bird: FakeEngine, stream: bool) -> None:
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"max_tokens": 3}, "max_tokens", None),
        ({"stop_sequences": ["🐦", "and"]}, "stop_sequence", "🐦"),
    ]
    for fields, reason, sequence in cases:
        answer = await http.post(URL, json={**ASK, **fields, "stream": stream})
        found = events_of(answer.text)[-2]["delta"] if stream else answer.json()
        assert (found["stop_reason"], found["stop_sequence"]) == (reason, sequence)


async def test_max_tokens_beyond_the_context(
    http: httpx2.AsyncClient, service: Service, bird: FakeEngine
) -> None:
    bird.answer = [50] * 1000
    message = (await http.post(URL, json={**ASK, "max_tokens": 4096})).json()
    assert message["stop_reason"] == "model_context_window_exceeded"
    usage = message["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == bird.facts.max_model_len


async def test_blocks_become_messages(http: httpx2.AsyncClient, service: Service, bird: FakeEngine) -> None:
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "One", "cache_control": {"type": "ephemeral"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "Two"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "Three", "is_error": True},
                {"type": "text", "text": "Four"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Zero"}]
    answer = await http.post(URL, json={**ASK, "system": system, "messages": messages})
    assert answer.status_code == 200, answer.text
    assert prompt_of(service, bird) == (
        "<|bos|><|system|>Zero<|end|><|user|>One<|end|><|assistant|>Two<|end|><|tool|>Error: Three<|end|>"
        "<|user|>Four<|end|><|assistant|>"
    )


async def test_an_answer_that_is_begun(http: httpx2.AsyncClient, service: Service, bird: FakeEngine) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "From"}]
    await http.post(URL, json={**ASK, "messages": messages})
    assert prompt_of(service, bird) == "<|bos|><|user|>x<|end|><|assistant|>From"


async def test_a_schema(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    assert (await http.post(URL, json={**ASK, "output_config": {"format": form}})).status_code == 200
    assert "json_schema" in bird.submits[-1].grammar


async def test_keys(make_service: MakeService, bird: FakeEngine) -> None:
    service = await attached(make_service(api_key=("secret",)), bird)
    async with asgi_client(service, **{"anthropic-version": "2023-06-01"}) as client:
        for headers, status in [
            ({}, 401),
            ({"x-api-key": "wrong"}, 401),
            ({"x-api-key": "secret"}, 200),
            ({"authorization": "Bearer secret"}, 200),
            ({"authorization": "Bearer wrong", "x-api-key": "secret"}, 401),
        ]:
            answer = await client.post(URL, json=ASK, headers=headers)
            assert answer.status_code == status
            if status == 401:
                assert answer.json()["error"]["type"] == "authentication_error"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
     "messages[0].content[0].tool_use_id"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [
        {"type": "tool_use", "id": "t", "name": "look", "input": {}}]}]}, "messages[1]"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
    ({"model": None}, "model"),
    ({"n": 2}, "n"),
    ({"stop": "x"}, "stop"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"top_k": "x"}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "name"), BAD, ids=lambda value: str(value)[:50])
async def test_bad_requests(
    http: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], name: str
) -> None:
    refused = await http.post(URL, json={**ASK, **fields})
    assert refused.status_code == 400
    body = refused.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert name in body["error"]["message"]
    assert not engine.submits


async def test_errors_are_the_librarys_own(
    client: anthropic.AsyncAnthropic, service: Service, engine: FakeEngine, make_service: MakeService
) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(**{**ASK, "model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        await client.messages.create(**{**ASK, "messages": [{"role": "user", "content": "x " * 500}]})
    engine.refuse_next = Refused(0, "overloaded", "full", True)
    with pytest.raises(anthropic.RateLimitError):
        await client.messages.create(**ASK)
    service.door.draining = True
    with pytest.raises(anthropic.APIStatusError) as stopping:
        await client.messages.create(**ASK)
    assert stopping.value.status_code == 529
    assert stopping.value.response.headers["retry-after"] == "1"
    async with asgi_client(make_service(max_body_bytes=1024)) as small:
        large = await small.post(URL, json={**ASK, "system": "x" * 2000})
        assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
        for method, path, status in [("GET", URL, 405), ("POST", f"{URL}/batches", 404)]:
            answer = await small.request(method, path)
            assert (answer.status_code, answer.json()["type"]) == (status, "error")


async def test_a_stream_that_breaks_ends_with_an_error(
    client: anthropic.AsyncAnthropic, bird: FakeEngine
) -> None:
    bird.pause_at = 2
    with pytest.raises(anthropic.APIStatusError, match="not finite"):  # noqa: PT012
        async with client.messages.stream(**ASK) as stream:
            bird.refuse(bird.submits[0].request_id, "numerical_error", "not finite")
            await stream.until_done()


async def test_the_error_that_ends_a_stream_names_the_request(
    service: Service, serve: Serve, bird: FakeEngine
) -> None:
    bird.pause_at = 2
    text = ""
    async with (
        httpx2.AsyncClient(
            base_url=await serve(service), headers={"x-request-id": "r-7"}, timeout=DEADLINE_S
        ) as live,
        live.stream("POST", URL, json={**ASK, "stream": True}) as response,
    ):
        bird.refuse(bird.submits[0].request_id, "numerical_error", "not finite")
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012
            async for piece in response.aiter_text():
                text += piece
    assert json.loads(text.rpartition("data: ")[2])["request_id"] == "r-7"
