"""Background responses, with the real openai library: polled, streamed, cancelled, taken over."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from openai.types.responses import ResponseCreatedEvent, ResponseInProgressEvent, ResponseQueuedEvent

from frontend.idempotency import Key
from frontend.jobs import Jobs
from frontend.response_store import document_name
from frontend.service import Service
from protocol.messages import Finish, Refused
from tests.frontend.conftest import END, Batches, MakeService, Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine
from tests.frontend.responses_schema import check_response
from tests.frontend.test_responses import TEXT, URL, bird, events_of

__all__ = ["bird"]
Ids = Callable[[str], list[int]]
ASK = {"input": "x", "background": True}


@pytest.fixture
async def client(service: Service, serve: Serve) -> AsyncIterator[openai.AsyncOpenAI]:
    url = await serve(service) + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=DEADLINE_S) as client:
        yield client


async def until(http: httpx2.AsyncClient, response_id: str, *statuses: str) -> dict[str, Any]:
    """Poll as clients do."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            body: dict[str, Any] = (await http.get(f"{URL}/{response_id}")).json()
            if body["status"] in statuses:
                check_response(body)
                return body
            await asyncio.sleep(0.01)


async def test_it_is_answered_at_once_and_done_later(
    client: openai.AsyncOpenAI, live: httpx2.AsyncClient, bird: FakeEngine
) -> None:
    bird.pause_at = 0
    queued = await client.responses.create(model="tiny", input="x", background=True)
    assert (queued.status, queued.background, queued.output) == ("queued", True, [])
    assert (await client.responses.retrieve(queued.id)).status == "queued"
    await bird.until(lambda: bird.submits)
    bird.resume()
    await until(live, queued.id, "completed")
    done = await client.responses.retrieve(queued.id)
    assert done.output_text == TEXT
    assert done.created_at == queued.created_at
    told = await client.responses.create(model="tiny", input="y", previous_response_id=queued.id)
    assert told.status == "completed"


async def test_its_events_can_be_read_again_from_anywhere(
    client: openai.AsyncOpenAI, http: httpx2.AsyncClient, bird: FakeEngine
) -> None:
    stream = await client.responses.create(model="tiny", input="x", background=True, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    begun = [
        (event.type, event.response.status)
        for event in events[:3]
        if isinstance(event, ResponseCreatedEvent | ResponseQueuedEvent | ResponseInProgressEvent)
    ]
    assert begun == [
        ("response.created", "queued"),
        ("response.queued", "queued"),
        ("response.in_progress", "in_progress"),
    ]
    assert events[-1].type == "response.completed"
    response_id = events[-1].response.id
    for after in (0, 4, len(events) - 2, len(events)):
        again = await client.responses.retrieve(response_id, stream=True, starting_after=after)
        assert [event.to_dict() async for event in again] == [one.to_dict() for one in events[after + 1 :]]
    raw = (await http.get(f"{URL}/{response_id}?stream=true")).text
    assert len(events_of(raw)) == len(events)


async def test_it_goes_on_without_its_client_and_is_taken_up_while_it_runs(
    service: Service, live: httpx2.AsyncClient, bird: FakeEngine
) -> None:
    bird.pause_at = 4
    async with live.stream("POST", URL, json={**ASK, "stream": True}) as response:
        made = await first_event(response.aiter_lines())
    await written(service, made["id"], 5)
    taking_up = asyncio.ensure_future(live.get(f"{URL}/{made['id']}?stream=true&starting_after=3"))
    bird.resume()
    events = events_of((await taking_up).text)
    assert [event["sequence_number"] for event in events] == list(range(4, 4 + len(events)))
    assert TEXT.endswith("".join(event.get("delta", "") for event in events))
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == TEXT
    assert not bird.aborted


async def test_a_response_without_stream_has_no_events(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    made = (await http.post(URL, json=ASK)).json()
    await until(http, made["id"], "completed")
    response = await http.get(f"{URL}/{made['id']}?stream=true")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=1", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
    ],
)
async def test_queries_that_make_no_sense(
    http: httpx2.AsyncClient, bird: FakeEngine, query: str, param: str
) -> None:
    made = (await http.post(URL, json={"input": "x"})).json()
    response = await http.get(f"{URL}/{made['id']}?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_cancelling(client: openai.AsyncOpenAI, http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    bird.pause_at = 3
    made = (await http.post(URL, json=ASK)).json()
    await until(http, made["id"], "in_progress")
    cancelled = await client.responses.cancel(made["id"])
    assert cancelled.status == "cancelled"
    assert TEXT.startswith(cancelled.output_text)
    assert cancelled.output_text
    await bird.until(lambda: bird.submits[0].request_id in bird.aborted)
    assert (await client.responses.cancel(made["id"])).status == "cancelled", "once more changes nothing"
    plain = await client.responses.create(model="tiny", input="x", store=True, max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.cancel(plain.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel("resp_0")


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_who_reads_along_hears_of_the_end(live: httpx2.AsyncClient, bird: FakeEngine, end: str) -> None:
    bird.pause_at = 3
    async with live.stream("POST", URL, json={**ASK, "stream": True}) as response:
        lines = response.aiter_lines()
        url = f"{URL}/{(await first_event(lines))['id']}"
        done = await (live.post(f"{url}/cancel") if end == "cancel" else live.delete(url))
        assert done.status_code == 200, done.text
        rest: list[str] = []
        try:
            async for line in lines:
                rest.append(line)
        except httpx2.RemoteProtocolError:
            assert end == "delete", "there it is cut off"
    code = "response_cancelled" if end == "cancel" else "response_not_found"
    last = [line for line in rest if line.startswith("data: ")][-1]
    assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == code
    await bird.until(lambda: bird.aborted)
    wanted = 200 if end == "cancel" else 404
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if (await live.get(url)).status_code == wanted:
                return
            await asyncio.sleep(0.01)


async def test_another_frontend_takes_over_behind_the_last_event(
    make_service: MakeService, make_engine: Callable[[], FakeEngine], ids: Ids
) -> None:
    """The first one dies without a word: its work ends, and so does its lock."""
    engines = make_engine(), make_engine()
    for engine in engines:
        engine.answer, engine.finish = [*ids(TEXT), END], Finish.STOP
    engines[0].pause_at = 4
    first, second = [await attached(make_service(), engine) for engine in engines]
    async with asgi_client(first, **{"idempotency-key": "k"}) as http, asgi_client(second) as other:
        asking = asyncio.ensure_future(http.post(URL, json={**ASK, "stream": True}))
        await engines[0].until(lambda: engines[0].submits)
        response_id = f"resp_{Key.of('', 'k', 'POST', URL, b'').root}"
        await written(first, response_id, 5)
        asking.cancel()
        working = [task for task in asyncio.all_tasks() if "Workshop._work" in repr(task.get_coro())]
        for task in working:
            task.cancel()
        await asyncio.wait((asking, *working))
        events = events_of((await other.get(f"{URL}/{response_id}?stream=true")).text)
        assert (await other.get(f"{URL}/{response_id}")).json()["status"] == "completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert text_of(events) == TEXT
    assert events[-1]["response"]["created_at"] == events[0]["response"]["created_at"]
    again, before = engines[1].submits[0], engines[0].submits[0]
    assert (again.key, again.digest, again.sampling.seed) == (before.key, before.digest, before.sampling.seed)


async def test_a_key_is_for_one_request(make_service: MakeService, bird: FakeEngine) -> None:
    service = await attached(make_service(), bird)
    async with asgi_client(service, **{"idempotency-key": "k"}) as http:
        first, second = [(await http.post(URL, json=ASK)).json() for _ in range(2)]
        assert first["id"] == second["id"]
        assert (await http.post(URL, json={**ASK, "input": "y"})).json()["error"][
            "code"
        ] == "idempotency_key_reused"
        await until(http, first["id"], "completed")
        assert len(bird.submits) == 1
        streamed = await http.post(URL, json=ASK, headers={"last-event-id": "1.0.0.0"})
        assert streamed.json()["error"]["param"] == "Last-Event-ID"


async def test_it_stays_queued_while_there_is_no_room(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    bird.refuse_next = Refused(0, "overloaded", "full", True, "", 0.01)
    events = events_of((await http.post(URL, json={**ASK, "stream": True})).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:3]] == [
        "response.created", "response.queued", "response.in_progress",
    ]  # fmt: skip
    assert (events[-1]["type"], text_of(events)) == ("response.completed", TEXT)
    assert len(bird.submits) == 2


async def test_cancelling_while_there_is_no_room(live: httpx2.AsyncClient, bird: FakeEngine) -> None:
    bird.refuse_next = Refused(0, "overloaded", "full", True, "", 3600.0)
    async with live.stream("POST", URL, json={**ASK, "stream": True}) as response:
        lines = response.aiter_lines()
        url = f"{URL}/{(await first_event(lines))['id']}"
        await bird.until(lambda: bird.submits)
        assert (await live.post(f"{url}/cancel")).json()["status"] == "cancelled"
        data = [line.removeprefix("data: ") async for line in lines if line.startswith("data: ")]
    kinds = [msgspec.json.decode(one)["type"] for one in data]
    assert kinds == ["response.queued", "error"]
    assert len(bird.submits) == 1


async def test_it_fails_as_any_other(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    bird.refuse_next = Refused(0, "context_length_exceeded", "too long", False)
    made = (await http.post(URL, json={**ASK, "stream": True})).text
    failed = events_of(made.rpartition("event: error")[0])[-1]
    assert failed["type"] == "response.failed"
    body = await until(http, failed["response"]["id"], "failed")
    assert body["error"] == {"code": "invalid_prompt", "message": "too long"}


async def test_what_comes_to_nothing_is_refused_at_once(http: httpx2.AsyncClient, bird: FakeEngine) -> None:
    for fields in ({"max_output_tokens": 1000}, {"input": [{"role": "user"}]}):
        assert (await http.post(URL, json={**ASK, **fields})).status_code == 400
    assert not bird.submits


async def test_more_events_than_are_kept(
    make_service: MakeService, bird: FakeEngine, batches: Batches
) -> None:
    batches(1)
    bird.answer = [50] * 60
    service = await attached(make_service(response_store_bytes=24000), bird)
    async with asgi_client(service) as http:
        text = (await http.post(URL, json={**ASK, "stream": True})).text
        response_id = first_response(text.split("\n"))["id"]
        assert '"too_many_events"' in text.split("\n\n")[-2]
        await until(http, response_id, "completed")


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("delta", "") for event in events)


def first_response(lines: list[str]) -> dict[str, Any]:
    [data] = [line for line in lines if line.startswith('data: {"type":"response.created"')]
    response: dict[str, Any] = msgspec.json.decode(data.removeprefix("data: "))["response"]
    return response


async def first_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    """The response in it."""
    async for line in lines:
        if line.startswith("data: "):
            return first_response([line])
    raise AssertionError("there are no events")


async def written(service: Service, response_id: str, count: int) -> None:
    """Wait until so many events are in the job's file."""
    jobs = Jobs(f"{service.response_store.folder}/jobs", 0)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if (events := jobs.events(document_name("", response_id))) is not None:
                with events:
                    if len(events.take()) >= count:
                        return
            await asyncio.sleep(0.01)
