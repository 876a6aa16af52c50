"""Streams of typed events with an Idempotency-Key go on behind any event, however the text is cut then."""

from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.outbox import Outbox, Position
from frontend.service import Service
from protocol.errors import InvalidRequest
from protocol.messages import Finish
from tests.frontend.conftest import END, asgi_client
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
ANSWER = "From pole to pole 🐦 and back."
KEY = {"idempotency-key": "k-1"}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {"input": "x"}),
    ("/v1/responses", {"input": "x", "top_logprobs": 1}),
    ("/v1/messages", {"model": "tiny", "max_tokens": 99, "messages": [{"role": "user", "content": "x"}]}),
]

Event = tuple[str, dict[str, Any]]
"""Its id, and its data."""


async def stream(
    http: httpx2.AsyncClient, url: str, request: dict[str, Any], last: str | None
) -> list[Event]:
    headers = KEY if last is None else {**KEY, "last-event-id": last}
    response = await http.post(url, json={**request, "stream": True}, headers=headers)
    assert response.status_code == 200, response.text
    blocks = [block.split("\n") for block in response.text.removesuffix("\n\n").split("\n\n") if block]
    return [(block[0].removeprefix("id: "), msgspec.json.decode(block[2][6:])) for block in blocks]


def delta_of(event: dict[str, Any]) -> str | None:
    """The text that it brings."""
    if not event["type"].endswith("delta") or event["type"] == "message_delta":
        return None
    delta = event["delta"]
    if isinstance(delta, str):
        return delta
    (text,) = (value for key, value in delta.items() if key != "type")
    return str(text)


def told(events: list[Event]) -> list[Any]:
    """What a client knows in the end: marks in their order, and between them all text and tokens."""
    known: list[Any] = []
    for _, event in events:
        text = delta_of(event)
        if text is None:
            known.append(event["type"])
        elif known and isinstance(known[-1], list):
            known[-1][0] += text
            known[-1][1] += event.get("logprobs", [])
        else:
            known.append([text, [*event.get("logprobs", [])]])
    return known


@pytest.mark.parametrize("batch", [1, 3, 1000])
@pytest.mark.parametrize(("url", "request_"), REQUESTS, ids=str)
async def test_a_stream_goes_on_behind_any_event(
    service: Service, engine: FakeEngine, ids: Ids, url: str, request_: dict[str, Any], batch: int
) -> None:
    engine.answer, engine.finish = [*ids(ANSWER), END], Finish.STOP
    async with asgi_client(service) as http:
        whole = await stream(http, url, request_, None)
        engine.tokens_per_message = batch
        for count, (last, _) in enumerate(whole, 1):
            rest = await stream(http, url, request_, last)
            assert told(whole[:count] + rest) == told(whole), last
            numbers = [event.get("sequence_number") for _, event in whole[:count] + rest]
            assert numbers in ([None] * len(numbers), list(range(len(numbers))))
            ids_of = [event[key]["id"] for _, event in whole + rest for key in ("response", "message")
                      if key in event]  # fmt: skip
            assert len(set(ids_of)) == 1


@pytest.mark.parametrize("last", ["1", "1.2.3", "0.99.0.0", "0.0.999.0", "0.0.0.1"])
async def test_ids_that_are_none(http: httpx2.AsyncClient, engine: FakeEngine, last: str) -> None:
    engine.answer = [50]
    headers = {**KEY, "last-event-id": last}
    refused = await http.post("/v1/responses", json={"input": "x", "stream": True}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Last-Event-ID"


def test_only_streams_go_on() -> None:
    with pytest.raises(InvalidRequest):
        Position.of((0, 0, 0, 0), stream=False)
    assert Position.of(None, stream=False) == Position()


def test_events_without_ids_and_numbers() -> None:
    outbox = Outbox(numbered=False)
    outbox.mark("one", b'{"a":1}')
    assert outbox.take() == b'event: one\ndata: {"a":1}\n\n'
    assert outbox.take() == b""


async def test_a_stream_that_broke_off_goes_on_from_before_its_last_words(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, engine.finish, engine.pause_at = [*ids(ANSWER), END], Finish.STOP, 3
    request = {"input": "x", "stream": True}
    text = ""
    async with live.stream("POST", "/v1/responses", json=request, headers=KEY) as response:
        engine.refuse(engine.submits[0].request_id, "numerical_error", "not finite")
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012
            async for piece in response.aiter_text():
                text += piece
    blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    known = [block for block in blocks if block[0].startswith("id: ")]
    last_words = blocks[len(known) :]
    assert last_words[-1][0] == "event: error"
    engine.pause_at = None
    before = [("", msgspec.json.decode(block[2][6:])) for block in known]
    rest = await stream(live, "/v1/responses", request, known[-1][0].removeprefix("id: "))
    whole = await stream(live, "/v1/responses", request, None)
    assert told(before + rest) == told(whole)
    assert rest[-1][1]["type"] == "response.completed"
