"""/v1/responses, mostly with the real openai library, against this frontend and a scripted engine core."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from pydantic import BaseModel

from frontend.service import Service
from protocol.messages import Finish
from tests.frontend.conftest import END, MakeService, Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine
from tests.frontend.responses_schema import check_event, check_response

Ids = Callable[[str], list[int]]
URL = "/v1/responses"
TEXT = "From pole to pole 🐦 and back."


@pytest.fixture
async def client(service: Service, serve: Serve) -> AsyncIterator[openai.AsyncOpenAI]:
    url = await serve(service) + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def bird(engine: FakeEngine, ids: Ids) -> FakeEngine:
    engine.answer, engine.finish = [*ids(TEXT), END], Finish.STOP
    return engine


def prompt_of(service: Service, engine: FakeEngine) -> str:
    """The text of the last prompt."""
    ids = msgspec.convert(memoryview(engine.submits[-1].prompt_token_ids).cast("I").tolist(), list[int])
    return service.tokenizer.decode(ids, skip_special_tokens=False)


def events_of(text: str) -> list[dict[str, Any]]:
    """Of a stream; each is checked."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = msgspec.json.decode(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check_event(event)
        events.append(event)
    return events


async def test_it_answers(
    client: openai.AsyncOpenAI, service: Service, bird: FakeEngine, http: httpx2.AsyncClient
) -> None:
    bird.num_cached = 3
    response = await client.responses.create(
        model="tiny", input="Hello", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}
    )
    assert response.output_text == TEXT
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert prompt_of(service, bird) == "<|bos|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>"
    check_response((await http.get(f"{URL}/{response.id}")).json())


async def test_the_events_and_their_order(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    request = {"input": "x", "stream": True}
    events = events_of((await http.post(URL, json=request)).text)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == TEXT
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    check_response(response)
    (item,) = response["output"]
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    assert item == next(event["item"] for event in events if event["type"] == "response.output_item.done")
    assert {event["response"]["id"] for event in events if "response" in event} == {response["id"]}


async def test_log_probabilities(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    request = {"input": "x", "stream": True, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    events = events_of((await http.post(URL, json=request)).text)
    streamed = [one for event in events if "delta" in event for one in event["logprobs"]]
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert part["logprobs"] == streamed
    assert len(streamed) == len(bird.answer) - 1
    assert all(len(one["top_logprobs"]) == 2 for one in streamed)
    plain = (await http.post(URL, json={"input": "x"})).json()
    assert plain["output"][0]["content"][0]["logprobs"] == []


async def test_it_says_why_it_is_incomplete(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    request = {"input": "x", "max_output_tokens": 3}
    whole = (await http.post(URL, json=request)).json()
    check_response(whole)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete"
    events = events_of((await http.post(URL, json={**request, "stream": True})).text)
    assert events[-1]["type"] == "response.incomplete"


async def test_an_empty_answer_is_a_message(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.answer, engine.finish = [END], Finish.STOP
    events = events_of((await http.post(URL, json={"input": "x", "stream": True})).text)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert "response.output_text.delta" not in [event["type"] for event in events]


class Bird(BaseModel):
    name: str


async def test_parse_and_stream_of_the_library(
    client: openai.AsyncOpenAI, engine: FakeEngine, ids: Ids, service: Service, serve: Serve
) -> None:
    """`engine` writes what the grammar allows anyway."""
    engine.answer, engine.finish = [*ids('{"name": "tern"}'), END], Finish.STOP
    parsed = await client.responses.parse(model="tiny", input="x", text_format=Bird)
    assert parsed.output_parsed == Bird(name="tern")
    assert '"json_schema"' in engine.submits[-1].grammar
    async with client.responses.stream(model="tiny", input="x", text_format=Bird) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert snapshots[-1] == '{"name": "tern"}'
    assert final.output_parsed == Bird(name="tern")

    def ask(url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as blocking:
            assert blocking.responses.parse(model="tiny", input="x", text_format=Bird).output_parsed
            with blocking.responses.stream(model="tiny", input="x") as events:
                assert events.get_final_response().output_text == '{"name": "tern"}'

    await asyncio.to_thread(ask, str(client.base_url))


ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Rules."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
    {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
        {"type": "output_text", "text": "Two", "annotations": []}]},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}", "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Three"}]},
    {"role": "user", "content": "Four"},
]  # fmt: skip


async def test_items_become_messages(http: httpx2.AsyncClient, service: Service, bird: FakeEngine) -> None:
    assert (await http.post(URL, json={"input": ITEMS, "instructions": "Zero"})).status_code == 200
    assert prompt_of(service, bird) == (
        "<|bos|><|system|>Zero<|end|><|system|>Rules.<|end|><|user|>One<|end|><|assistant|>Two<|end|>"
        "<|tool|>Three<|end|><|user|>Four<|end|><|assistant|>"
    )


async def test_a_conversation_goes_on(client: openai.AsyncOpenAI, service: Service, bird: FakeEngine) -> None:
    first = await client.responses.create(model="tiny", input="One", instructions="Once.")
    second = await client.responses.create(model="tiny", input="Two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    await client.responses.create(model="tiny", input="Three", previous_response_id=second.id, store=False)
    turn = f"<|assistant|>{TEXT}<|end|>"
    assert prompt_of(service, bird) == (
        f"<|bos|><|user|>One<|end|>{turn}<|user|>Two<|end|>{turn}<|user|>Three<|end|><|assistant|>"
    )
    assert (await client.responses.retrieve(second.id)).output_text == TEXT
    with pytest.raises(openai.BadRequestError, match="without background: true"):
        await client.responses.retrieve(second.id, stream=True)
    await client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError) as gone:
        await client.responses.create(model="tiny", input="x", previous_response_id=second.id)
    assert gone.value.code == "response_not_found"
    assert gone.value.param == "previous_response_id"
    assert "as input" in gone.value.message
    await client.responses.create(model="tiny", input="x", previous_response_id=first.id)


async def test_what_is_not_stored_says_so(make_service: MakeService, bird: FakeEngine) -> None:
    service = await attached(make_service(response_store_bytes=0), bird)
    async with asgi_client(service) as client:
        response = (await client.post(URL, json={"input": "x", "store": True})).json()
        assert response["store"] is False
        gone = await client.get(f"{URL}/{response['id']}")
        assert gone.status_code == 404
        assert "--response-store-bytes 0" in gone.json()["error"]["message"]
    service = await attached(make_service(response_store_bytes=64), bird)
    async with asgi_client(service) as client:
        assert (await client.post(URL, json={"input": "x"})).json()["store"] is False


async def test_responses_belong_to_their_key(make_service: MakeService, bird: FakeEngine) -> None:
    service = await attached(make_service(api_key=("one", "two")), bird)
    async with asgi_client(service) as client:
        one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        made = (await client.post(URL, json={"input": "x"}, headers=one)).json()
        path = f"{URL}/{made['id']}"
        assert (await client.get(path, headers=two)).status_code == 404
        assert (await client.delete(path, headers=two)).status_code == 404
        assert (await client.get(path, headers=one)).json()["id"] == made["id"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 7}, "input"),
    ({"input": "x" * 100_000}, "input"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "["}]},
     "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "name": "f", "call_id": "c"}]}, "input"),
    ({"input": [{"role": "user", "content": "x"}] * 8193}, "input"),
    ({"previous_response_id": 1}, "previous_response_id"),
    ({"background": 1}, "background"),
    ({"background": True, "store": False}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"truncation": "some"}, "truncation"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1000}, "max_output_tokens"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"n": 2}, "n"),
    ({"stop": ["x"]}, "stop"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"guided_regex": "x"}, "guided_regex"),
    ({"temperature": -1}, "temperature"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"include": ["everything"]}, "include[0]"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "text.format.schema"),
    ({"metadata": {"k": 1}}, "metadata[...]"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ({"model": "other"}, "model"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: str(value)[:50])
async def test_bad_requests(
    http: httpx2.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    body = fields if not fields or "input" in fields else {"input": "x", **fields}
    refused = await http.post(URL, json=body)
    assert refused.status_code in (400, 404), refused.text
    error = refused.json()["error"]
    assert error["param"] in (param, param.removesuffix("[...]"))
    assert re.search(rf"{param.split('[')[0].split('.')[0]}|context length", error["message"])
    assert not engine.submits


async def test_a_stream_that_breaks_ends_with_an_error(client: openai.AsyncOpenAI, bird: FakeEngine) -> None:
    bird.pause_at = 3
    stream = await client.responses.create(model="tiny", input="x", stream=True)
    seen = []
    bird.refuse(bird.submits[0].request_id, "numerical_error", "not finite")
    with pytest.raises(openai.APIError, match="not finite"):  # noqa: PT012
        async for event in stream:
            seen.append(event)
    assert seen[-1].type == "response.failed"
    assert seen[-1].response.error is not None
    (item,) = seen[-1].response.output
    assert item.type == "message"
    assert item.status == "incomplete"
    assert [event.sequence_number for event in seen] == list(range(len(seen)))


async def test_last_words_have_their_documented_shape(live: httpx2.AsyncClient, bird: FakeEngine) -> None:
    bird.pause_at = 3
    text = ""
    async with live.stream("POST", URL, json={"input": "x", "stream": True}) as response:
        bird.refuse(bird.submits[0].request_id, "numerical_error", "not finite")
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012
            async for piece in response.aiter_text():
                text += piece
    last = events_of(text)[-1]
    assert (last["type"], last["code"], last["message"]) == ("error", "numerical_error", "not finite")
    assert last["error"]["message"] == "not finite"


async def test_a_client_that_goes_away(service: Service, serve: Serve, bird: FakeEngine) -> None:
    bird.pause_at = 2
    async with httpx2.AsyncClient(base_url=await serve(service), timeout=DEADLINE_S) as client:
        asking = asyncio.ensure_future(client.post(URL, json={"input": "x"}))
        await bird.until(lambda: bird.submits)
        asking.cancel()
    await bird.until(lambda: bird.aborted == {bird.submits[0].request_id})
