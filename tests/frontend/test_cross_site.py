"""What pages of other sites may make a browser send here: nothing that makes this server work."""

from collections.abc import Callable

import httpx2
import pytest

from frontend.service import Service
from tests.frontend.conftest import asgi_client

MakeService = Callable[..., Service]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_sites_page_cannot_make_it_work(http: httpx2.AsyncClient, site: str) -> None:
    headers = {"sec-fetch-site": site, "origin": "https://evil.example", "content-type": "text/plain"}
    for path in ("/v1/completions", "/v1/messages", "/tokenize", "/nowhere"):
        response = await http.post(path, headers=headers, content=b"{}")
        assert response.status_code == 403, path
        assert "https://evil.example" in response.json()["error"]["message"]
    assert (await http.get("/v1/models", headers=headers)).status_code == 200, "a link may be followed"


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}])
async def test_its_own_page_and_other_clients_can(http: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    assert (await http.post("/tokenize", headers=headers, json={"prompt": "x"})).status_code == 200


@pytest.mark.parametrize("allowed", ["https://good.example", "*"])
async def test_pages_of_allowed_origins_can(make_service: MakeService, allowed: str) -> None:
    headers = {"sec-fetch-site": "cross-site", "origin": "https://good.example"}
    async with asgi_client(make_service(allowed_origins=(allowed,))) as client:
        response = await client.post("/tokenize", headers=headers, json={"prompt": "x"})
        assert response.status_code == 200
        if allowed != "*":
            other = {**headers, "origin": "https://evil.example"}
            assert (await client.post("/tokenize", headers=other, json={"prompt": "x"})).status_code == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://tern", 200),
        ("https://TERN", 200),
        ("http://tern:8000", 403),
        ("http://evil.example", 403),
        ("null", 403),
    ],
)
async def test_a_browser_that_says_only_the_origin(
    http: httpx2.AsyncClient, origin: str, status: int
) -> None:
    """As all do for a server that is neither on their machine nor serves https."""
    headers = {"origin": origin, "host": "tern"}
    assert (await http.post("/tokenize", headers=headers, json={"prompt": "x"})).status_code == status
