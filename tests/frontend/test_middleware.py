"""Request ids, keys, body limits, unknown routes, and defects of our own."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from frontend.service import Service
from protocol.errors import NumericalError
from tests.frontend.conftest import Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/metrics"),
    ("GET", "/nothing/here"),
    ("OPTIONS", "/v1/models"),
]


@pytest.fixture
async def keyed(
    make_service: Callable[..., Service], engine: FakeEngine
) -> AsyncIterator[httpx2.AsyncClient]:
    service = await attached(make_service(api_key=("secret", "другой")), engine)
    async with asgi_client(service) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header", [None, "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer secret2"]
)
async def test_every_route_needs_a_key(
    keyed: httpx2.AsyncClient, method: str, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"authorization": header}
    response = await keyed.request(method, path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert "secret" not in response.text


@pytest.mark.parametrize("key", ["secret", "другой"])
async def test_each_key_opens(keyed: httpx2.AsyncClient, engine: FakeEngine, key: str) -> None:
    engine.answer = [50]
    headers = [(b"authorization", f"bearer {key}".encode())]
    response = await keyed.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert response.status_code == 200


async def test_tenants_are_told_apart_without_telling_their_keys(
    keyed: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = [50]
    for key in ("secret", "другой", "secret"):
        headers = [(b"authorization", f"Bearer {key}".encode())]
        await keyed.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    one, other, again = [submit.tenant for submit in engine.submits]
    assert one == again != other
    assert "secret" not in one


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/version"])
async def test_health_needs_no_key(keyed: httpx2.AsyncClient, path: str) -> None:
    assert (await keyed.get(path)).status_code == 200


async def test_unknown_routes_and_methods(http: httpx2.AsyncClient) -> None:
    missing = await http.get("/v2/nothing")
    assert missing.status_code == 404
    assert set(missing.json()["error"]) == {"message", "type", "param", "code"}
    wrong = await http.get("/v1/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    assert "POST" in wrong.headers["allow"]


async def test_the_request_id_comes_back(http: httpx2.AsyncClient) -> None:
    response = await http.get("/version", headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b"])
async def test_a_request_id_is_made(http: httpx2.AsyncClient, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given}
    made = {(await http.get("/nothing", headers=headers)).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert all(len(one) == 32 for one in made)


async def test_a_body_over_the_limit(
    make_service: Callable[..., Service], engine: FakeEngine, serve: Serve
) -> None:
    service = await attached(make_service(max_body_bytes=2048), engine)
    engine.answer = [50]

    async def chunked(size: int) -> AsyncIterator[bytes]:
        yield b'{"prompt": "x", "user": "'
        for _ in range(size // 100):
            yield b"x" * 100
        yield b'"}'

    async with httpx2.AsyncClient(base_url=await serve(service), timeout=DEADLINE_S) as client:
        for content in (b"x" * 2049, chunked(4000)):
            response = await client.post("/v1/completions", content=content)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "body_too_large"
            assert "2048" in response.json()["error"]["message"]
        assert (await client.post("/v1/completions", content=chunked(1500))).status_code == 200


async def test_a_defect_of_ours_is_a_500_that_tells_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(service, "model_name", broken)
    async with asgi_client(service) as client:
        response = await client.post("/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-should-retry"] == "false"
    assert "ZeroDivisionError" in caplog.text


async def test_errors_of_the_tree_keep_their_status(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise NumericalError("nan")

    monkeypatch.setattr(service, "model_name", failing)
    async with asgi_client(service) as client:
        response = await client.get("/v1/models/tiny")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "numerical_error"
