"""POST /v1/embeddings: inputs of all shapes, both encodings, shortened vectors, precise refusals."""

import asyncio
import base64
import struct
from array import array
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import openai
import pytest

from frontend.openai import embeddings
from frontend.openai.embeddings import MAX_INPUTS, MOST_AT_ONCE
from frontend.service import Service
from protocol import columns
from protocol.messages import EngineFacts, Refused
from tests.frontend.conftest import BOS, MakeService, Serve, asgi_client, attached
from tests.frontend.fake_engine import FakeEngine

EVEN, ODD = [0.6, 0.8, 0, 0], [-0.6, -0.8, 0, 0]
"""What the engine says to inputs by their last id."""


@pytest.fixture
async def client(service: Service, serve: Serve) -> AsyncIterator[openai.AsyncOpenAI]:
    url = await serve(service) + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def post(http: httpx2.AsyncClient, **body: Any) -> Any:
    response = await http.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def prompts(engine: FakeEngine) -> list[list[int]]:
    return [list(columns.unpack_ids(submit.prompt_token_ids)) for submit in engine.submits]


async def test_openai_client(client: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    """It asks for base64, and decodes it itself."""
    answer = await client.embeddings.create(model="tiny", input=[[7, 8], [9]])
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.data[0].embedding == pytest.approx(EVEN)
    assert answer.data[1].embedding == pytest.approx(ODD)
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("tiny", 3, 3)
    assert prompts(engine) == [[7, 8], [9]]
    assert all(submit.embed and submit.sampling.max_tokens == 1 for submit in engine.submits)
    plain = await client.embeddings.create(
        model="tiny", input="a tern", encoding_format="float", dimensions=1
    )
    assert [abs(number) for number in plain.data[0].embedding] == [1.0]


@pytest.mark.parametrize(
    ("given", "count"), [("a tern", 1), (["a tern", "two"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2)]
)
async def test_inputs(http: httpx2.AsyncClient, engine: FakeEngine, given: Any, count: int) -> None:
    answer = await post(http, input=given)
    assert answer["object"] == "list"
    assert [one["index"] for one in answer["data"]] == list(range(count))
    assert len(engine.submits) == count
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts(engine)))


async def test_texts_get_their_special_tokens(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    await post(http, input="a tern")
    await post(http, input="a tern", add_special_tokens=False)
    with_bos, without = prompts(engine)
    assert with_bos == [BOS, *without]


async def test_inputs_are_cut_only_when_that_is_asked_for(
    http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    long = list(range(3, 203))
    await post(http, input=[long, [5]], truncate_prompt_tokens=4)
    await post(http, input=long, truncate_prompt_tokens=-1)
    assert prompts(engine) == [long[-4:], [5], long[-127:]]


async def test_encodings_and_dimensions(http: httpx2.AsyncClient) -> None:
    plain = (await post(http, input=[4]))["data"][0]
    assert plain == {"index": 0, "embedding": pytest.approx(EVEN), "object": "embedding"}
    packed = (await post(http, input=[4], encoding_format="base64"))["data"][0]["embedding"]
    assert struct.unpack("<4f", base64.b64decode(packed)) == pytest.approx(EVEN)
    assert (await post(http, input=[4], dimensions=4))["data"][0]["embedding"] == pytest.approx(EVEN)
    assert (await post(http, input=[4], dimensions=2))["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    assert (await post(http, input=[4], dimensions=1))["data"][0]["embedding"] == [1.0]


async def test_terms_reach_the_engine_core(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    await http.post(
        "/v1/embeddings",
        json={"input": [4], "priority": 3, "cache_salt": "s", "user": "u", "model": "org/tiny"},
        headers={"X-Request-Timeout": "9"},
    )
    (submit,) = engine.submits
    assert (submit.priority, submit.cache_salt, submit.key) == (3, "s", "")
    assert submit.timeout_s == pytest.approx(9, abs=1)


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "nothing": ({}, 400, "input", "required"),
    "null": ({"input": None}, 400, "input", "required"),
    "no inputs": ({"input": []}, 400, "input", "required"),
    "no ids": ({"input": [[]]}, 400, "input[0]", "length >= 1"),
    "number": ({"input": 5}, 400, "input", "expected str | array"),
    "mixed": ({"input": ["a", 5]}, 400, "input", "cannot be mixed"),
    "too many": ({"input": [[1]] * (MAX_INPUTS + 1)}, 400, "input", "2049 inputs; at most 2048"),
    "unknown id": ({"input": [100000]}, 400, "input", "token id 100000 is not in the vocabulary"),
    "too long": ({"input": [5] * 128}, 400, "input", "context length is 128 tokens"),
    "far too long": ({"input": "a" * 9999}, 400, "input", "9999 characters"),
    "format": ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "invalid enum value"),
    "no dimensions": ({"input": "a", "dimensions": 0}, 400, "dimensions", "expected int >= 1, got 0"),
    "dimensions": ({"input": "a", "dimensions": 5}, 400, "dimensions", "5 is more than the 4"),
    "model": ({"input": "a", "model": "other"}, 404, "model", "not served"),
    "truncation": ({"input": "a", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens", "no token"),
    "task": ({"input": "a", "task": "query"}, 400, "task", "write its instruction into the text"),
    "not normalized": ({"input": "a", "normalize": False}, 400, "normalize", "vectors have length 1"),
    "stream": ({"input": "a", "stream": True}, 400, "stream", "comes whole"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_requests_are_told_what_is_wrong(
    case: str, http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    body, status, param, message = BAD[case]
    response = await http.post("/v1/embeddings", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert message in error["message"]
    assert engine.submits == []


async def test_one_refusal_ends_all(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.refuse_next = Refused(0, "overloaded", "full", True)
    response = await http.post("/v1/embeddings", json={"input": [[1], [2]]})
    assert (response.status_code, response.json()["error"]["message"]) == (429, "full")
    assert "retry-after" in response.headers


async def test_a_client_that_goes_away_is_not_computed_for(
    live: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.pause_at = 0
    count = MOST_AT_ONCE + 9
    asking = asyncio.ensure_future(live.post("/v1/embeddings", json={"input": [[1]] * count}))
    await engine.until(lambda: len(engine.submits) == MOST_AT_ONCE)
    asking.cancel()
    await engine.until(lambda: len(engine.aborted) == MOST_AT_ONCE)
    assert len(engine.submits) == MOST_AT_ONCE


async def test_all_of_many_inputs_have_their_turn(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    answer = await post(http, input=[[n % 9 + 1] for n in range(300)])
    assert [one["embedding"][0] > 0 for one in answer["data"]] == [n % 9 % 2 == 1 for n in range(300)]


async def test_many_vectors_are_not_written_in_one_turn_of_the_loop(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or large ones would block it for seconds, and a blocked event loop is taken for a hang."""
    loop, turn, turns = asyncio.get_running_loop(), 0, set[int]()

    def tick() -> None:
        nonlocal turn
        turn += 1
        ticking.append(loop.call_soon(tick))

    def shortened(vector: "array[float]", size: int) -> "array[float]":
        turns.add(turn)
        return vector[:size]

    ticking: deque[asyncio.Handle] = deque(maxlen=1)
    tick()
    monkeypatch.setattr(embeddings, "_shortened", shortened)
    await post(http, input=[[1]] * (4 * MOST_AT_ONCE))
    ticking.pop().cancel()
    assert len(turns) >= 4


async def test_the_request_goes_on_with_another_engine_core(
    service: Service, http: httpx2.AsyncClient, engine: FakeEngine, make_engine: Any
) -> None:
    engine.pause_at = 0
    asking = asyncio.ensure_future(http.post("/v1/embeddings", json={"input": [4]}))
    await engine.until(lambda: engine.submits)
    engine.close()
    await attached(service, make_engine())
    assert (await asking).json()["data"][0]["embedding"] == pytest.approx(EVEN)


async def test_metrics_count_inputs(service: Service, http: httpx2.AsyncClient) -> None:
    await post(http, input=[[1, 2], [3]])
    text = (await http.get("/metrics")).text
    assert "tern_prompt_tokens_total 3.0" in text
    assert 'tern_request_success_total{finished_reason="stop"} 2.0' in text


async def test_a_model_without_embeddings(
    make_service: MakeService, facts: EngineFacts, engine: FakeEngine
) -> None:
    engine.facts = msgspec.structs.replace(facts, embedding_size=0)
    async with asgi_client(await attached(make_service(), engine)) as http:
        response = await http.post("/v1/embeddings", json={"input": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"
