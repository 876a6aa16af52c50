"""The model that a request names decides with which adapter it is computed, at every endpoint."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from protocol.messages import Finish
from tests.frontend.conftest import MakeService, asgi_client, attached
from tests.frontend.fake_engine import FakeEngine

MESSAGES = [{"role": "user", "content": "x"}]
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "n": 2, "max_tokens": 3},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/responses": {"input": "x", "max_output_tokens": 3},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/embeddings": {"input": "x"},
}


@pytest.fixture
async def http(make_service: MakeService, engine: FakeEngine) -> AsyncIterator[httpx2.AsyncClient]:
    service = make_service(adapters=("sql", "org/poet"))
    await attached(service, engine)
    engine.answer, engine.finish = [20, 21, 22], Finish.LENGTH
    async with asgi_client(service) as client:
        yield client


@pytest.mark.parametrize("url", ENDPOINTS)
async def test_the_adapter_goes_with_the_request(
    http: httpx2.AsyncClient, engine: FakeEngine, url: str
) -> None:
    for model, adapter in (("tiny", ""), ("sql", "sql"), ("org/tiny", ""), ("org/poet", "org/poet")):
        engine.submits.clear()
        response = await http.post(url, json={**ENDPOINTS[url], "model": model})
        assert response.status_code == 200, response.text
        assert {submit.adapter for submit in engine.submits} == {adapter}
        assert response.json()["model"] == model


async def test_an_unknown_model_is_told_what_there_is(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "x", "model": "sq"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == (
        "the model 'sq' is not served here; served: tiny, org/tiny, sql, org/poet"
    )


async def test_adapters_are_listed_with_their_model(http: httpx2.AsyncClient) -> None:
    cards = (await http.get("/v1/models")).json()["data"]
    found = [(card["id"], card["root"], card["parent"]) for card in cards]
    assert found == [
        ("tiny", "tiny", None),
        ("org/tiny", "tiny", None),
        ("sql", "tiny", "tiny"),
        ("org/poet", "tiny", "tiny"),
    ]
    assert (await http.get("/v1/models/org/poet")).json() == cards[3]


async def test_tokens_are_the_models(http: httpx2.AsyncClient) -> None:
    bodies = [{"prompt": "x", "model": model} for model in ("tiny", "sql")]
    answers = [(await http.post("/tokenize", json=body)).json() for body in bodies]
    assert answers[0] == answers[1]
