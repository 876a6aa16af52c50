"""Names that a page of a stranger can have, by its own name server: not this machine's."""

from collections.abc import Callable
from typing import Any

import pytest

from frontend.service import Service
from tests.frontend.conftest import asgi_client

MakeService = Callable[..., Service]
STRANGERS = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "EVIL.example.", "localhost.evil"]
OURS = [
    *("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "10.0.0.7:80"),
    *("tern", "app.localhost:8000", "host.docker.internal:8000", ""),
]


async def status(service: Service, host: str, **headers: str) -> int:
    async with asgi_client(service, **headers) as client:
        return (await client.get("/v1/models", headers={"host": host})).status_code


@pytest.mark.parametrize("host", STRANGERS)
async def test_a_name_that_may_be_a_strangers_is_refused(make_service: MakeService, host: str) -> None:
    async with asgi_client(make_service()) as client:
        origin = {"host": host, "origin": f"http://{host}"}  # of the same origin, for a browser
        for answer in (
            await client.post("/tokenize", headers=origin, json={"prompt": "x"}),
            await client.get("/v1/models", headers={"host": host}),
        ):
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "foreign_host"
            assert "--allowed-hosts" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", OURS)
async def test_names_of_this_machine(make_service: MakeService, host: str) -> None:
    assert await status(make_service(), host) == 200


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_hosts": ("evil.EXAMPLE",)},
        {"allowed_hosts": ("*",)},
        {"host": "0.0.0.0"},
        {"uds": "/run/tern.sock"},
        {"root_path": "/llm"},
    ],
    ids=str,
)
async def test_who_is_meant_to_be_asked_by_other_names(
    make_service: MakeService, options: dict[str, Any]
) -> None:
    assert await status(make_service(**options), "evil.example:8000") == 200


async def test_who_has_keys_needs_no_more(make_service: MakeService) -> None:
    service = make_service(api_key=("secret",))
    assert await status(service, "evil.example", authorization="Bearer secret") == 200
    assert await status(service, "evil.example") == 401
