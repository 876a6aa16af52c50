"""Requests with an Idempotency-Key: they outlive their clients, and their streams go on behind any event."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.idempotency import Key
from frontend.service import Service
from protocol.messages import Finish
from tests.frontend.conftest import END, Batches, Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

Ids = Callable[[str], list[int]]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ANSWER = "From pole to pole 🐦 and back. Stop? No: STOP, and more"
KEY = {"idempotency-key": "k-1"}
REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}], "prompt": "x", "stream": True, "max_tokens": 100,
    "stream_options": {"include_usage": True},
}  # fmt: skip


class Event:
    """`id` is None where there is none."""

    def __init__(self, lines: list[str]) -> None:
        assert len([line for line in lines if line.startswith("data: ")]) == 1, lines
        self.id = next((line[4:] for line in lines if line.startswith("id: ")), None)
        self.data = lines[-1].removeprefix("data: ")


async def stream(
    client: httpx2.AsyncClient,
    url: str,
    request: dict[str, Any],
    last: str | None = None,
    *,
    keyed: bool = True,
) -> list[Event]:
    headers = {**KEY, "last-event-id": last} if last is not None else KEY if keyed else {}
    response = await client.post(url, json=request, headers=headers)
    assert response.status_code == 200, response.text
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    return [Event(block.split("\n")) for block in blocks[:-1]]


def told(events: list[Event], num_choices: int) -> list[Any]:
    """What a client knows in the end: of each choice its texts, tokens, reason; and the usage."""
    choices = [{"text": "", "logprobs": [], "reasons": []} for _ in range(num_choices)]
    usages = []
    for event in events:
        document = msgspec.json.decode(event.data)
        if document.get("usage") is not None:
            usages.append(document["usage"])
        for choice in document["choices"]:
            known: dict[str, Any] = choices[choice["index"]]
            known["text"] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            found = choice["logprobs"] or {}
            known["logprobs"] += found.get("content") or list(
                zip(found.get("tokens", ()), found.get("text_offset", ()), strict=True)
            )
            known["reasons"] += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
    return [*choices, usages[-1]]


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (TEXT, {}),
    (CHAT, {"n": 2}),
    (TEXT, {"n": 3, "logprobs": 2}),
    (CHAT, {"logprobs": True, "top_logprobs": 1}),
    (CHAT, {"stop": ["STOP", "pole, no"]}),
    (TEXT, {"echo": True, "logprobs": 0}),
    (TEXT, {"echo": True, "max_tokens": 0}),
    (TEXT, {"stop": [" back. Stop"], "logprobs": 1, "include_stop_str_in_output": True}),
    (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
]


@pytest.mark.parametrize("batch", [1, 3, 1000])
@pytest.mark.parametrize(("url", "fields"), VARIANTS, ids=lambda value: str(value)[:40])
async def test_a_stream_goes_on_behind_any_event(
    service: Service,
    engine: FakeEngine,
    ids: Ids,
    batches: Batches,
    url: str,
    fields: dict[str, Any],
    batch: int,
) -> None:
    engine.answer, engine.finish = [*ids(ANSWER), END], Finish.STOP
    request = {**REQUEST, **fields}
    num_choices = fields.get("n", 1)
    async with asgi_client(service) as client:
        batches(1)
        whole = await stream(client, url, request)
        assert len(whole) > 5 or request["max_tokens"] == 0
        expected = told(whole, num_choices)
        assert expected == told(await stream(client, url, request, keyed=False), num_choices)
        assert all(len(known["reasons"]) == 1 for known in expected[:-1])
        batches(batch)
        for count, event in enumerate(whole, 1):
            assert event.id is not None
            rest = await stream(client, url, request, last=event.id)
            before = [one for one in whole[:count] if '"choices":[]' not in one.data]
            assert told(before + rest, num_choices) == expected, event.id
            assert rest[-1].id == whole[-1].id


async def test_the_same_request_has_the_same_names_and_seed(
    http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = [50]
    request = {"prompt": "x", "max_tokens": 1, "n": 2}
    ids = [(await http.post(TEXT, json=request, headers=KEY)).json()["id"] for _ in range(2)]
    assert ids[0] == ids[1]
    first, second, *again = engine.submits
    assert first.key != second.key
    assert second.sampling.seed == first.sampling.seed + 1
    for one, other in zip((first, second), again, strict=True):
        assert (one.key, one.digest, one.sampling) == (other.key, other.digest, other.sampling)
        assert len(one.key) == 32
        assert "k-1" not in one.key


async def test_a_seed_of_its_own_is_kept(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.answer = [50]
    await http.post(TEXT, json={"prompt": "x", "seed": 5}, headers=KEY)
    assert engine.submits[0].sampling.seed == 5


async def test_without_a_key_nothing_is_kept_and_no_event_has_an_id(
    http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = [50]
    response = await http.post(TEXT, json=REQUEST)
    assert "id: " not in response.text
    assert (engine.submits[0].key, engine.submits[0].digest) == ("", "")


@pytest.mark.parametrize("n", [1, 3])
async def test_a_key_used_for_something_else(http: httpx2.AsyncClient, engine: FakeEngine, n: int) -> None:
    engine.answer = [50]
    await http.post(TEXT, json={"prompt": "x"}, headers=KEY)
    reused = await http.post(TEXT, json={**REQUEST, "n": n}, headers=KEY)
    assert reused.status_code == 409
    assert reused.json()["error"]["code"] == "idempotency_key_reused"
    assert reused.headers["x-should-retry"] == "false"


def test_keys_are_told_apart() -> None:
    known = {
        Key.of(tenant, key, "POST", path, body).of_choice(index)
        for tenant in ("", "a")
        for key in ("k", "ak")
        for path in (CHAT,)
        for body in (b"x",)
        for index in (0, 1, 11)
    }
    assert len(known) == 12
    one = Key.of("a", "k", "POST", CHAT, b"x")
    assert one.digest != Key.of("a", "k", "POST", CHAT, b"y").digest
    assert one.digest != Key.of("a", "k", "POST", TEXT, b"x").digest
    assert one.seed != Key.of("b", "k", "POST", CHAT, b"x").seed


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_leaves_its_request_running(
    service: Service, serve: Serve, engine: FakeEngine, ids: Ids, streaming: bool
) -> None:
    engine.answer, engine.pause_at = ids(ANSWER), 2
    url = await serve(service)
    request = {**REQUEST, "stream": streaming, "n": 2, "stream_options": None}
    async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S) as client:
        asking = asyncio.ensure_future(client.post(CHAT, json=request, headers=KEY))
        await engine.until(lambda: len(engine.submits) == 2)
        asking.cancel()
    await engine.until(lambda: engine.left == {submit.request_id for submit in engine.submits})
    assert not engine.aborted


async def test_a_request_that_fails_takes_its_other_choices_with_it(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer, engine.pause_at = ids(ANSWER), 2
    asking = asyncio.ensure_future(live.post(TEXT, json={**REQUEST, "stream": False, "n": 2,
                                                         "stream_options": None}, headers=KEY))  # fmt: skip
    await engine.until(lambda: len(engine.submits) == 2)
    engine.refuse(engine.submits[0].request_id, "numerical_error", "not finite")
    assert (await asking).status_code == 500
    await engine.until(lambda: engine.aborted == {engine.submits[1].request_id})


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é"])
async def test_bad_keys(http: httpx2.AsyncClient, engine: FakeEngine, key: str) -> None:
    headers = [(b"idempotency-key", key.encode())]
    refused = await http.post(TEXT, json={"prompt": "x"}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert not engine.submits


@pytest.mark.parametrize(
    ("last", "fields"),
    [
        ("x", {}),
        ("", {}),
        ("-1", {}),
        ("1.", {}),
        ("1.2", {}),
        ("1", {"n": 2}),
        ("9" * 5000, {}),
        ("101", {}),
        ("99", {}),
        ("99.1", {"n": 2}),
        ("1", {"stream": False, "stream_options": None}),
    ],
)
async def test_bad_last_event_ids(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, last: str, fields: dict[str, Any]
) -> None:
    engine.answer = ids(ANSWER)
    headers = {**KEY, "last-event-id": last}
    refused = await http.post(CHAT, json={**REQUEST, **fields}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Last-Event-ID"


async def test_going_on_needs_the_key(http: httpx2.AsyncClient) -> None:
    refused = await http.post(CHAT, json=REQUEST, headers={"last-event-id": "1"})
    assert refused.status_code == 400
    assert "Idempotency-Key" in refused.json()["error"]["message"]


async def test_tenants_do_not_share_keys(make_service: Any, engine: FakeEngine) -> None:
    engine.answer = [50]
    service = await attached(make_service(api_key=("one", "two")), engine)
    async with asgi_client(service) as client:
        for key in ("one", "two"):
            headers = {**KEY, "authorization": f"Bearer {key}"}
            assert (await client.post(TEXT, json={"prompt": "x"}, headers=headers)).status_code == 200
    assert engine.submits[0].key != engine.submits[1].key
