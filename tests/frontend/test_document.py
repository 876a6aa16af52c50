"""The OpenAPI document: valid in itself, complete, and true."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from frontend import playground
from frontend.app import routes
from frontend.openai.document import make_document
from frontend.service import Service
from tests.frontend.conftest import asgi_client
from tests.frontend.fake_engine import FakeEngine

METHODS = {"get", "post", "delete"}
TYPES = {"string", "integer", "number", "boolean", "array", "object", "null"}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON document."""
    if isinstance(value, dict):
        yield value
        for one in value.values():
            yield from nodes(one)
    elif isinstance(value, list):
        for one in value:
            yield from nodes(one)


def resolve(document: dict[str, Any], ref: str) -> Any:
    assert ref.startswith("#/")
    for step in ref[2:].split("/"):
        document = document[step]
    return document


def test_it_is_valid_in_itself() -> None:
    document = make_document({"/health"})
    assert document["openapi"].startswith("3.1.")
    assert {"title", "version"} <= document["info"].keys()
    for node in nodes(document):
        if "$ref" in node:
            assert resolve(document, node["$ref"])
        if isinstance(node.get("type"), str) and "in" not in node and "scheme" not in node:
            assert node["type"] in TYPES
        if "required" in node and "properties" in node:
            assert set(node["required"]) <= node["properties"].keys()
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        assert path.startswith("/")
        for method, operation in methods.items():
            assert method in METHODS
            assert {"200", "default"} <= operation["responses"].keys()
            given = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert given == ({"id"} if "{id}" in path else set())


def test_every_route_is_in_it(service: Service) -> None:
    found = {
        (method.lower(), route.path.replace("{id:path}", "{id}"))
        for route in routes(service, ())
        if isinstance(route, Route) and route.path not in playground.load()
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = make_document(None)["paths"]
    assert found == {(method, path) for path, methods in paths.items() for method in methods}


def test_ranges_choices_and_what_is_required_are_in_it() -> None:
    schemas = make_document(None)["components"]["schemas"]
    chat = schemas["ChatRequest"]
    assert chat["required"] == ["messages"]
    assert chat["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 16}
    assert "user" in schemas["ChatMessage"]["properties"]["role"]["enum"]
    assert schemas["ErrorBody"]["required"] == ["error"]
    assert set(schemas["ErrorDetail"]["required"]) == {"message", "type", "param", "code"}


async def test_it_is_served(http: httpx2.AsyncClient) -> None:
    response = await http.get("/openapi.json")
    assert response.json() == make_document(None)
    operation = response.json()["paths"]["/v1/completions"]["post"]
    assert operation["security"] == []
    assert [one["name"] for one in operation["parameters"]] == [
        "Idempotency-Key",
        "Last-Event-ID",
        "X-Request-Timeout",
    ]


async def test_with_keys_it_says_where_they_are_needed(make_service: Callable[..., Service]) -> None:
    headers = {"authorization": "Bearer secret"}
    async with asgi_client(make_service(api_key=("secret",))) as client:
        assert (await client.get("/openapi.json")).status_code == 401
        paths = (await client.get("/openapi.json", headers=headers)).json()["paths"]
    open_paths = {path for path, methods in paths.items() for one in methods.values() if "security" in one}
    assert open_paths == {"/health", "/health/live", "/health/ready", "/version"}


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
async def test_answers_are_as_it_says(http: httpx2.AsyncClient, engine: FakeEngine, url: str) -> None:
    engine.answer = [50]
    body = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "tokens": [50]}
    if url == "/tokenize":
        del body["messages"]
    answer = (await http.post(url, json=body)).json()
    document = make_document(None)
    content = document["paths"][url]["post"]["responses"]["200"]["content"]
    schema = resolve(document, content["application/json"]["schema"]["$ref"])
    assert set(schema["required"]) <= answer.keys() <= schema["properties"].keys()
