"""What happens to open answers when something goes wrong: the engine core, a message, the client."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.service import Service
from protocol import columns
from protocol.messages import NO_TOKEN, Finish, Refused
from tests.frontend.conftest import MakeEngine, Serve, attached, events, text_of
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

Ids = Callable[[str], list[int]]
TEXT = "From pole to pole 🐦 and back, every year of its life."
HEAD = "From pole"
REQUEST = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 100}


class Reading:
    """A stream that is read in the background, so that a test can act meanwhile."""

    def __init__(self, client: httpx2.AsyncClient, **fields: Any) -> None:
        self.chunks: list[dict[str, Any]] = []
        self.done = False
        self.error: dict[str, Any] | None = None
        self.broken = False
        self._changed = asyncio.Condition()
        self.task = asyncio.ensure_future(self._read(client, {**REQUEST, **fields}))

    async def _read(self, client: httpx2.AsyncClient, request: dict[str, Any]) -> None:
        try:
            async with client.stream("POST", "/v1/chat/completions", json=request) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    await self._take(line)
        except httpx2.RemoteProtocolError:
            self.broken = True

    async def _take(self, line: str) -> None:
        async with self._changed:
            if line == "data: [DONE]":
                self.done = True
            elif line:
                document = msgspec.json.decode(line.removeprefix("data: "))
                if "error" in document:
                    self.error = document["error"]
                else:
                    self.chunks.append(document)
            self._changed.notify_all()

    async def until_text(self, text: str) -> None:
        async with self._changed:
            reached = self._changed.wait_for(lambda: text_of(self.chunks) == text)
            await asyncio.wait_for(reached, DEADLINE_S)

    async def end(self) -> None:
        await asyncio.wait_for(self.task, DEADLINE_S)


async def test_an_engine_core_is_replaced_in_the_middle(
    live: httpx2.AsyncClient, service: Service, engine: FakeEngine, make_engine: MakeEngine, ids: Ids
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), len(ids("From pole to"))
    reading = Reading(live)
    await reading.until_text("From pole to")
    engine.close()
    successor = make_engine()
    successor.answer = ids(TEXT)
    service.client.reattach(successor.endpoint)
    await reading.end()
    assert text_of(reading.chunks) == TEXT
    assert reading.done
    resumed = columns.unpack_ids(successor.submits[0].resumed_token_ids)
    assert list(resumed) == ids("From pole to")
    assert service.client.resubmitted == 1


async def test_a_lost_message_is_asked_for_again(
    live: httpx2.AsyncClient, service: Service, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), len(ids(HEAD))
    reading = Reading(live)
    await engine.until(lambda: engine.submits)
    await reading.until_text(HEAD)
    engine.pause_at = None
    later = len(ids(HEAD)) + 2
    engine.row(engine.submits[0].request_id, later, engine.answer[later])  # the two before it never came
    await reading.end()
    assert text_of(reading.chunks) == TEXT
    assert service.client.gaps == 1


async def test_a_repeated_message_is_dropped(live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer, engine.pause_at = ids(TEXT), 3
    reading = Reading(live)
    await engine.until(lambda: engine.submits)
    for index in (0, 1, 2, 1):
        engine.row(engine.submits[0].request_id, index, engine.answer[index])
    engine.resume()
    await reading.end()
    assert text_of(reading.chunks) == TEXT


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_stream_that_cannot_go_on_ends_with_an_error_and_a_broken_connection(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, choices: int
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), len(ids(HEAD))
    reading = Reading(live, n=choices)
    await reading.until_text(HEAD)
    engine.refuse(engine.submits[0].request_id, "numerical_error", "not finite")
    await reading.end()
    assert reading.error == {
        "message": "not finite",
        "type": "server_error",
        "param": None,
        "code": "numerical_error",
    }
    assert reading.broken
    assert not reading.done
    others = {submit.request_id for submit in engine.submits[1:]}
    await engine.until(lambda: engine.aborted == others)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": ["way"]},
        {"stop": ["pole to"], "logprobs": True},
        {"stream_interval": 50},
        {"n": 2},
        {"n": 2, "stop": ["pole to"]},
    ],
)
async def test_all_that_was_computed_comes_before_the_error(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, fields: dict[str, Any]
) -> None:
    """Once, also what is held back because a stop string could begin there."""
    engine.answer, engine.pause_at = ids(TEXT), 1
    reading = Reading(live, **fields)
    choices = fields.get("n", 1)
    await engine.until(lambda: len(engine.submits) == choices)
    engine.resume(len(ids(HEAD)))
    engine.refuse(engine.submits[0].request_id, "numerical_error", "not finite")
    await reading.end()
    assert reading.error is not None
    for index in range(choices):
        mine = [chunk for chunk in reading.chunks if chunk["choices"][0]["index"] == index]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in mine) == HEAD
        if fields.get("logprobs"):
            entries = [chunk["choices"][0]["logprobs"] for chunk in mine]
            assert "".join(one["token"] for entry in entries if entry for one in entry["content"]) == HEAD


async def test_an_aborted_request_is_not_a_finished_one(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), len(ids(HEAD))
    reading = Reading(live)
    await reading.until_text(HEAD)
    engine.row(engine.submits[0].request_id, len(ids(HEAD)), NO_TOKEN, Finish.ABORT)
    await reading.end()
    assert reading.error is not None
    assert reading.error["code"] == "unavailable"


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("code", "status", "header"),
    [
        ("overloaded", 429, "retry-after"),
        ("unavailable", 503, "retry-after"),
        ("deadline_exceeded", 504, "x-should-retry"),
        ("numerical_error", 500, "x-should-retry"),
        ("invalid_value", 400, None),
        ("from_the_future", 500, "x-should-retry"),
    ],
)
async def test_a_refusal_has_its_status(
    http: httpx2.AsyncClient, engine: FakeEngine, streaming: bool, code: str, status: int, header: str | None
) -> None:
    engine.refuse_next = Refused(0, code, "no", False)
    response = await http.post("/v1/chat/completions", json={**REQUEST, "stream": streaming})
    assert response.status_code == status
    assert response.json()["error"]["message"] == "no"
    assert {"retry-after", "x-should-retry"} & set(response.headers) == ({header} if header else set())


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("tokens", [0, 2])
async def test_a_client_that_leaves_aborts_its_requests(
    service: Service, serve: Serve, engine: FakeEngine, ids: Ids, streaming: bool, tokens: int
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), tokens
    host, port = (await serve(service)).removeprefix("http://").split(":")
    body = msgspec.json.encode({**REQUEST, "stream": streaming, "n": 2})
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        await engine.until(lambda: len(engine.submits) == 2)
    await engine.until(lambda: engine.aborted == {submit.request_id for submit in engine.submits})
    assert service.client.num_streams == 0


async def test_what_has_come_together_goes_out_together(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids(TEXT)
    engine.tokens_per_message = len(engine.answer)
    async with live.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
        chunks = await events(response)
    assert len(chunks) == 3  # role, all of the text, finish


async def test_draining_lets_open_streams_finish(
    live: httpx2.AsyncClient, service: Service, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), len(ids(HEAD))
    reading = Reading(live)
    await reading.until_text(HEAD)
    draining = asyncio.ensure_future(service.door.drain(DEADLINE_S))
    refused = await live.post("/v1/chat/completions", json=REQUEST)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert (await live.get("/health/ready")).status_code == 503
    assert (await live.get("/health/live")).status_code == 200
    engine.resume()
    await reading.end()
    assert text_of(reading.chunks) == TEXT
    assert reading.done
    await asyncio.wait_for(draining, DEADLINE_S)


async def test_draining_ends_what_takes_too_long_with_an_error(
    live: httpx2.AsyncClient, service: Service, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, engine.pause_at = ids(TEXT), len(ids(HEAD))
    reading = Reading(live)
    await reading.until_text(HEAD)
    whole = asyncio.ensure_future(live.post("/v1/chat/completions", json={**REQUEST, "stream": False}))
    await engine.until(lambda: len(engine.submits) == 2)
    await service.door.drain(0)
    await reading.end()
    assert reading.error is not None
    assert reading.error["code"] == "unavailable"
    assert reading.broken
    assert (await whole).status_code == 503
    await engine.until(lambda: len(engine.aborted) == 2)


async def test_new_work_waits_while_an_engine_core_is_replaced(
    live: httpx2.AsyncClient, service: Service, engine: FakeEngine, make_engine: MakeEngine, ids: Ids
) -> None:
    engine.close()
    successor = make_engine()
    successor.answer = ids(TEXT)
    service.client.reattach(successor.endpoint)
    assert not service.client.attached.is_set()
    async with live.stream("POST", "/v1/chat/completions", json=REQUEST) as response:
        assert text_of(await events(response)) == TEXT


async def test_without_an_engine_core_there_is_no_service(
    make_service: Callable[[], Service], serve: Serve, engine: FakeEngine
) -> None:
    service = make_service()
    async with httpx2.AsyncClient(base_url=await serve(service), timeout=DEADLINE_S) as client:
        refused = await client.post("/v1/chat/completions", json=REQUEST)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/health/ready")).status_code == 503
        await attached(service, engine)
        assert (await client.get("/health/ready")).json() == {"status": "ready", "epoch": 1}


async def test_a_server_with_a_mute_engine_core_is_not_ready(
    http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.silent_pings = True
    assert (await http.get("/health")).status_code == 503
    with suppress(TimeoutError):
        assert b"tern_engine_up 0.0" in (await http.get("/metrics")).content
