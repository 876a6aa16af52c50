"""Streams that have nothing to say send pings, which no client takes for an answer."""

import asyncio
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from starlette.types import Message

from frontend.keep_alive import COMMENT, KeepAlive
from protocol.messages import Refused
from tests.frontend.conftest import MakeService, Says, Serve, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

USER: Any = [{"role": "user", "content": "x"}]
PING = 'event: ping\ndata: {"type": "ping"}\n\n'


class Recorder:
    """An ASGI `send`."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.pinged = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        if message.get("body") == COMMENT:
            self.pinged.set()


async def test_a_ping_begins_a_response_and_none_follows_its_end() -> None:
    record = Recorder()
    async with KeepAlive(record, 0.01) as send:
        await asyncio.wait_for(record.pinged.wait(), DEADLINE_S)
        assert [message["type"] for message in record.messages[:2]] == [
            "http.response.start",
            "http.response.body",
        ]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        record.pinged.clear()
        await asyncio.wait_for(record.pinged.wait(), DEADLINE_S)
        await send({"type": "http.response.body", "body": b"b", "more_body": False})
        last = len(record.messages)
        record.pinged.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(record.pinged.wait(), 0.05)
    assert len(record.messages) == last
    assert [message["type"] for message in record.messages].count("http.response.start") == 1


@pytest.mark.parametrize(
    ("path", "fields", "ping"),
    [
        ("/v1/chat/completions", {"messages": USER}, COMMENT.decode()),
        ("/v1/completions", {"prompt": "x"}, COMMENT.decode()),
        ("/v1/responses", {"input": "x"}, COMMENT.decode()),
        ("/v1/responses", {"input": "x", "background": True}, COMMENT.decode()),
        ("/v1/messages", {"model": "tiny", "messages": USER, "max_tokens": 50}, PING),
    ],
)
async def test_a_stream_that_waits_in_the_queue(
    make_service: MakeService, serve: Serve, engine: FakeEngine, says: Says,
    path: str, fields: dict[str, Any], ping: str,
) -> None:  # fmt: skip
    says("From pole to pole.")
    engine.pause_at = 0
    service = await attached(make_service(sse_keep_alive_interval=0.02), engine)
    async with (
        httpx2.AsyncClient(base_url=await serve(service), timeout=DEADLINE_S) as http,
        http.stream("POST", path, json={"stream": True, **fields}) as response,
    ):
        text = ""
        async for piece in response.aiter_text():
            text += piece
            if engine.pause_at is not None and ping in text:
                engine.resume()
    assert response.status_code == 200
    assert "pole" not in text[: text.index(ping)]
    assert "pole" in text


async def test_real_clients_pass_over_them(
    make_service: MakeService, serve: Serve, engine: FakeEngine, says: Says
) -> None:
    says("From pole to pole.")
    url = await serve(await attached(make_service(sse_keep_alive_interval=0.01), engine))

    async def later() -> None:
        await engine.until(lambda: engine.submits)
        await asyncio.sleep(0.05)
        engine.resume()

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        engine.pause_at, waiting = 0, asyncio.ensure_future(later())
        stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(texts) == "From pole to pole."
        await waiting
    engine.submits.clear()
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as other:
        engine.pause_at, waiting = 0, asyncio.ensure_future(later())
        async with other.messages.stream(model="tiny", max_tokens=50, messages=USER) as events:
            assert "".join([text async for text in events.text_stream]) == "From pole to pole."
        await waiting


async def test_what_is_refused_before_the_first_ping_keeps_its_status(
    make_service: MakeService, serve: Serve, engine: FakeEngine
) -> None:
    engine.refuse_next = Refused(0, "overloaded", "full", True)
    service = await attached(make_service(sse_keep_alive_interval=60), engine)
    async with httpx2.AsyncClient(base_url=await serve(service), timeout=DEADLINE_S) as http:
        refused = await http.post("/v1/completions", json={"prompt": "x", "stream": True})
    assert refused.status_code == 429
