"""GET /live/state and /live/events: what they say, to whom, and how little they cost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import msgspec
import pytest

from frontend import live as live_module
from frontend.service import Service
from protocol import columns
from protocol.observation import Event, RequestView, Snapshot, Stage
from tests.frontend.conftest import Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

MakeService = Callable[..., Service]
MakeEngine = Callable[[], FakeEngine]

SNAPSHOT = Snapshot(
    nonce=0,
    epoch=1,
    requests=(
        RequestView(4, Stage.DECODING, 9, 3, 64, 11, 0, 1),
        RequestView(5, Stage.WAITING, 9, 0, 64, 0, 0, 0),
    ),
    cell_stride=2,
    cells=columns.pack_ids([0, -1, -2]),
    num_steps=7,
    step_seconds=columns.pack(columns.FLOAT32, [0.25]),
    step_decodes=columns.pack_ids([1]),
    step_prompt_tokens=columns.pack_ids([0]),
)  # fmt: skip


async def heard(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield msgspec.json.decode(line[6:])


async def test_the_state_is_of_the_engine_core(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.snapshot = SNAPSHOT
    response = await http.get("/live/state")
    assert response.headers["cache-control"] == "no-store"
    state = response.json()
    assert (state["version"], state["status"], state["epoch"]) == (1, "ready", 1)
    assert state["model"]["model"] == "tiny"
    assert state["counters"]["num_running"] == 3
    assert [one["stage"] for one in state["requests"]] == ["decoding", "waiting"]
    assert state["blocks"] == {"stride": 2, "cells": [0, -1, -2]}
    assert state["steps"] == {"count": 7, "ms": [250.0], "decodes": [1], "prompt_tokens": [0]}


async def test_many_who_ask_at_once_are_answered_with_one_picture(
    http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    responses = await asyncio.gather(*(http.get("/live/state") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert engine.inspected == 1


async def test_without_an_engine_core_it_says_so(
    make_service: MakeService, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "ANSWER_TIMEOUT_S", 0.01)
    monkeypatch.setattr(live_module, "STATE_EVERY_S", 0.0)
    service = make_service()
    async with asgi_client(service) as client:
        assert (await client.get("/live/state")).json()["status"] == "no_engine_core"
        await attached(service, engine)
        engine.silent_pings = True
        state = (await client.get("/live/state")).json()
        assert (state["status"], state["counters"], state["blocks"]) == ("no_engine_core", None, None)
        assert state["model"]["model"] == "tiny"
        engine.silent_pings = False
        engine.suspend()
        while (await client.get("/live/state")).json()["status"] != "no_worker":
            pass


async def test_events_come_to_those_who_listen_and_to_those_who_come_later(
    service: Service, live: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.tell(Event(1, 0, "engine_core_started", age_s=3.0))
    engine.tell(Event(1, 1, "workers_lost", num_requests=2, cause="was killed by SIGKILL"))
    engine.tell(Event(1, 1, "workers_lost", num_requests=2, cause="was killed by SIGKILL"))  # twice
    async with live.stream("GET", "/live/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        news = heard(response)
        first, second = await anext(news), await anext(news)
        assert (first["id"], first["kind"]) == ("1.0", "engine_core_started")
        assert second["at"] - first["at"] >= 2.9
        assert (second["kind"], second["num_requests"], second["cause"]) == (
            "workers_lost", 2, "was killed by SIGKILL",
        )  # fmt: skip
        engine.tell(Event(1, 2, "workers_restarted", num_requests=2, duration_s=0.5))
        third = await asyncio.wait_for(anext(news), DEADLINE_S)
        assert (third["id"], third["duration_s"]) == ("1.2", 0.5)
        async with live.stream("GET", "/live/events") as other:
            assert [(await anext(heard(other)))["id"]] == ["1.0"]


async def test_another_engine_core_is_an_event_with_the_streams_that_go_on(
    service: Service, live: httpx2.AsyncClient, engine: FakeEngine, make_engine: MakeEngine
) -> None:
    engine.tell(Event(1, 0, "engine_core_started"))
    async with live.stream("GET", "/live/events") as response:
        news = heard(response)
        assert (await anext(news))["kind"] == "engine_core_started"
        engine.answer, engine.pause_at = [9, 9, 9], 1
        asked = asyncio.ensure_future(live.post("/v1/completions", json={"prompt": "x", "max_tokens": 3}))
        await engine.until(lambda: engine.submits)
        engine.close()
        other = make_engine()
        other.answer, other.pause_at = [9, 9, 9], 2
        service.client.reattach(other.endpoint)
        await other.until(lambda: other.num_attached)
        other.tell(Event(4, 1, "workers_ready"))  # its first event is lost
        restarted, ready = await anext(news), await anext(news)
        assert (restarted["kind"], restarted["num_requests"]) == ("engine_core_restarted", 1)
        assert (ready["kind"], ready["id"]) == ("workers_ready", "4.1")
        other.resume()
        assert (await asked).status_code == 200


async def test_listeners_are_bounded_and_let_go(
    service: Service, live: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "MOST_LISTENERS", 1)
    async with live.stream("GET", "/live/events") as response:
        assert (await live.get("/live/events")).status_code == 429
        service.live.close()
        async for _ in response.aiter_lines():
            pass  # it ends, and cleanly
    assert (await live.get("/live/events")).status_code == 503


async def test_both_need_the_key(make_service: MakeService, engine: FakeEngine, serve: Serve) -> None:
    service = await attached(make_service(api_key=("secret",)), engine)
    async with asgi_client(service) as client:
        for path in ("/live/state", "/live/events"):
            assert (await client.get(path)).status_code == 401
        response = await client.get("/live/state", headers={"authorization": "Bearer secret"})
        assert response.status_code == 200
