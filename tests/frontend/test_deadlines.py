"""How long a request may take, when it is worth trying again, and what is said while no worker is there."""

from collections.abc import Callable

import httpx2
import pytest

from frontend.service import Service
from protocol.messages import Refused
from tests.frontend.conftest import asgi_client, attached
from tests.frontend.fake_engine import FakeEngine

URL = "/v1/completions"


@pytest.mark.parametrize(
    ("most", "asked", "expected"),
    [(0.0, None, None), (9.0, None, 9), (0.0, "2.5", 2.5), (9.0, "2.5", 2.5), (9.0, "20", 9)],
)
async def test_the_smaller_limit_wins(
    make_service: Callable[..., Service],
    engine: FakeEngine,
    most: float,
    asked: str | None,
    expected: float | None,
) -> None:
    engine.answer = [50]
    service = await attached(make_service(request_timeout=most), engine)
    headers = {"x-request-timeout": asked} if asked is not None else {}
    async with asgi_client(service) as client:
        assert (await client.post(URL, json={"prompt": "x"}, headers=headers)).status_code == 200
    assert engine.submits[0].timeout_s == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize("asked", ["0", "0.0", "-1", "x", "", "inf", "nan", "1e9", "1s", "٣", "9" * 10])
async def test_bad_timeouts(http: httpx2.AsyncClient, engine: FakeEngine, asked: str) -> None:
    headers = [(b"x-request-timeout", asked.encode())]
    refused = await http.post(URL, json={"prompt": "x"}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "X-Request-Timeout"
    assert not engine.submits


@pytest.mark.parametrize("code", ["overloaded", "unavailable"])
@pytest.mark.parametrize(("known", "told"), [(0.2, "1"), (6.1, "7"), (60.0, "60"), (1e6, "60"), (0.0, None)])
async def test_when_to_come_back(
    http: httpx2.AsyncClient, engine: FakeEngine, code: str, known: float, told: str | None
) -> None:
    engine.refuse_next = Refused(0, code, "no", True, retry_after_s=known)
    refused = await http.post(URL, json={"prompt": "x"})
    default = {"overloaded": "2", "unavailable": "1"}[code]
    assert refused.headers["retry-after"] == (default if told is None else told)


async def test_without_a_worker_it_is_not_ready_and_requests_wait(
    http: httpx2.AsyncClient, service: Service, engine: FakeEngine
) -> None:
    engine.suspend()
    while not service.client.suspended:
        await service.client.ping()
    refused = await http.get("/health/ready")
    assert refused.status_code == 503
    assert "worker" in refused.json()["error"]["message"]
    assert (await http.get("/health/live")).status_code == 200
    engine.answer = [50]
    assert (await http.post(URL, json={"prompt": "x"})).status_code == 200  # let in; this engine is generous
    engine.attached()
    while service.client.suspended:
        await service.client.ping()
    assert (await http.get("/health/ready")).status_code == 200
