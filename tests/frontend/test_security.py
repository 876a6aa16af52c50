"""What a hostile client tries: ways around the key, too much of everything, and what errors and logs tell."""

import asyncio
import hmac
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.routing import Route

from frontend import middleware
from frontend.app import make_app, public_paths, routes
from frontend.keys import api_keys
from frontend.service import Service
from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions
from tests.frontend.conftest import Serve, asgi_client, attached
from tests.frontend.fake_engine import DEADLINE_S, FakeEngine

MakeService = Callable[..., Service]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CANARY = "canary-5f3a"
INTERNALS = re.compile(r"/(home|work|opt|usr|tmp|root)/|0x[0-9a-f]+|Traceback|File \"|\.py\b|site-packages")


async def test_every_route_there_is_needs_a_key(make_service: MakeService) -> None:
    service = make_service(api_key=("secret",))
    public = public_paths(service.options)
    tried = 0
    async with asgi_client(service) as client:
        for route in routes(service, ("secret",)):
            assert isinstance(route, Route)
            path = route.path.replace("{id:path}", "x")
            for method in route.methods or ():
                for headers in ({}, {"authorization": "Bearer wrong"}):
                    response = await client.request(method, path, headers=headers)
                    assert (response.status_code == 401) == (path not in public), (method, path)
                    tried += 1
    assert tried > 30


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /metrics?/health HTTP/1.1\r\nhost: x\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: x/health?\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: x/health#\r\n",
        b"GET http://x/metrics HTTP/1.1\r\nhost: x/health\r\n",
        b"GET /health/../metrics HTTP/1.1\r\nhost: x\r\n",
        b"GET //metrics HTTP/1.1\r\nhost: x\r\n",
        b"GET /metrics/ HTTP/1.1\r\nhost: x\r\n",
        b"GET /%6detrics HTTP/1.1\r\nhost: x\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: x\r\nx-forwarded-prefix: /health\r\nx-original-url: /health\r\n",
        b"GET /metrics HTTP/1.1\r\nauthorization: Bearer wrong\r\nauthorization: Bearer secret\r\n",
    ],
    ids=lambda line: str(line[:60]),
)
async def test_no_way_around_the_key(make_service: MakeService, serve: Serve, request_line: bytes) -> None:
    host, port = (await serve(make_service(api_key=("secret",)))).removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_line + b"connection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert answer.startswith(b"HTTP/1.1 401 ")
    writer.close()
    await writer.wait_closed()


def test_keys_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\n  two  \n")
    assert api_keys(FrontendOptions(api_key=("zero",), api_key_file=str(path))) == ("zero", "one", "two")
    assert api_keys(FrontendOptions()) == ()
    for content in (b"", b"# none\n\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(StartupError, match="--api-key-file"):
            api_keys(FrontendOptions(api_key_file=str(path)))
    with pytest.raises(StartupError, match="No such file"):
        api_keys(FrontendOptions(api_key_file=str(tmp_path / "other")))


async def test_a_key_of_a_file_opens(make_service: MakeService, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("filed\n")
    async with asgi_client(make_service(api_key_file=str(path))) as client:
        assert (await client.get("/metrics")).status_code == 401
        for key, status in (("filed", 200), ("other", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_every_key_is_compared_in_constant_time(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However early one fits, or differs: how long a refusal takes tells nothing."""
    compared: list[tuple[int, int]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((len(given), len(known)))
        return hmac.compare_digest(given, known)

    monkeypatch.setattr(middleware, "hmac", SimpleNamespace(compare_digest=compare))
    async with asgi_client(make_service(api_key=("first", "second", "third"))) as client:
        for key in ("first", "third", "f", "x" * 1000):
            compared.clear()
            await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            assert compared == [(32, 32)] * 3


GREEDY: list[dict[str, Any]] = [
    {"n": 10**6},
    {"logprobs": 10**6},
    {"stop": ["x"] * 10**4},
    {"stop": ["x" * 10**6]},
    {"stop_token_ids": list(range(10**4))},
    {"logit_bias": {str(i): 1 for i in range(10**4)}},
    {"max_tokens": 10**12},
    {"prompt": ["x"] * 10**5},
]


@pytest.mark.parametrize("fields", GREEDY, ids=lambda fields: str(fields)[:30])
async def test_caps_come_before_any_work(
    service: Service, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(service, "tokenizer", None)  # not even asked
    async with asgi_client(service) as client:
        response = await client.post(TEXT, json={"prompt": "x", **fields})
    assert response.status_code == 400
    assert not engine.submits


MANY = 8193
ONE = {"role": "user", "content": "x"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "x"}] * (MANY // 2 + 1)}
TOOL = {"type": "function", "function": {"name": "f"}}
CROWDED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [ONE] * MANY}),
    ("/v1/chat/completions", {"messages": [PARTS] * 2}),
    ("/v1/chat/completions", {"messages": [ONE], "tools": [TOOL] * 257}),
    ("/tokenize", {"messages": [ONE] * MANY}),
    ("/v1/messages", {"max_tokens": 5, "messages": [ONE] * MANY}),
    ("/v1/messages", {"max_tokens": 5, "messages": [PARTS] * 2}),
    ("/v1/messages", {"max_tokens": 5, "messages": [ONE], "tools": [{"name": "f"}] * 257}),
    ("/v1/responses", {"input": [ONE] * MANY}),
    ("/v1/responses", {"input": [{"role": "user", "content": PARTS["content"]}] * 2}),
    ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "f"}] * 257}),
    ("/v1/embeddings", {"input": ["x"] * 10**5}),
    ("/v1/completions", {"prompt": [[1]] * 10**5}),
    ("/v1/completions", {"prompt": "x", "nobody_knows": [[[1]]] * 10**5}),
    (CHAT, {"messages": [ONE], "chat_template_kwargs": {"a": [{}] * 10**5}}),
    (CHAT, {"messages": [ONE], "metadata": {"a": ["a"] * 10**6}}),
    ("/detokenize", {"tokens": [1] * 10**6}),
]


@pytest.mark.parametrize(("path", "body"), CROWDED, ids=lambda one: str(one)[:40])
async def test_many_small_things_are_counted_before_anything_is_made_of_them(
    service: Service, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(service, "tokenizer", None)
    async with asgi_client(service) as client:
        response = await client.post(path, json={"model": "tiny", **body})
    assert response.status_code == 400, response.text
    assert not engine.submits


async def test_a_prompt_of_50_mb(
    make_service: MakeService, serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answer = [50]
    body = msgspec.json.encode({"prompt": "x " * (25 << 20)})

    async def chunked() -> Any:
        for start in range(0, len(body), 1 << 20):
            yield body[start : start + (1 << 20)]

    guarded = await attached(make_service(), engine)
    generous = await attached(make_service(max_body_bytes=64 << 20), engine)
    monkeypatch.setattr(guarded, "tokenizer", None)
    monkeypatch.setattr(generous, "tokenizer", None)
    async with httpx2.AsyncClient(base_url=await serve(guarded), timeout=DEADLINE_S) as client:
        assert (await client.post(TEXT, content=body)).status_code == 413
        assert (await client.post(TEXT, content=chunked())).status_code == 413
    async with asgi_client(generous) as client:
        assert (await client.post(TEXT, content=body)).status_code == 400


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "file:///etc/passwd", "data:image/png;base64,AA=="]
)
async def test_nothing_is_fetched(http: httpx2.AsyncClient, engine: FakeEngine, kind: str, url: str) -> None:
    part = {"type": kind, kind: {"url": url}}
    refused = await http.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
    assert refused.status_code == 400
    assert "reads text only" in refused.json()["error"]["message"]
    assert not engine.submits


async def test_errors_and_logs_tell_nothing(
    service: Service, engine: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    engine.answer = [50]
    texts = []
    changes: list[dict[str, Any]] = [
        {}, {"n": 0}, {"model": "/etc/passwd"}, {"max_tokens": 10**9}, {"tools": [1]}, {"seed": {}},
        {"chat_template_kwargs": {"bos_token": [1]}}, {"prompt": [[1], 2]}, {"logit_bias": {"x": 1}},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": 1}}]}]},
        {"messages": [{"role": CANARY, "content": CANARY}]}, {"stream": True, "n": 2},
    ]  # fmt: skip
    plain = {"prompt": CANARY, "messages": [{"role": "user", "content": CANARY}]}
    bodies = [{**plain, **fields} for fields in changes]
    async with asgi_client(
        service, **{"idempotency-key": CANARY, "x-request-id": f"a\x7f{CANARY}"}
    ) as client:
        for body in bodies:
            for url in (CHAT, TEXT, "/tokenize", "/detokenize", f"/{CANARY}%0aforged"):
                texts.append((await client.post(url, json=body)).text)
                texts.append((await client.post(url, content=b"{" + CANARY.encode())).text)

        def broken(*_: Any, **__: Any) -> None:
            raise ValueError(f"{object()} {CANARY} /home/x/y.py")

        monkeypatch.setattr(service, "model_name", broken)
        failed = await client.post(CHAT, json=bodies[0])
        assert failed.status_code == 500
        texts.append(failed.text)
    assert not [text for text in texts if INTERNALS.search(text)]
    ours = [record.getMessage() for record in caplog.records if record.name != "httpx2"]
    assert any("ValueError" in line for line in ours)
    assert not [line for line in ours if CANARY in line]


async def test_what_a_client_calls_its_request_cannot_forge_log_lines(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    app = make_app(service)
    monkeypatch.setattr("frontend.middleware.Authentication.__call__", broken)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://tern") as client:
        headers = [(b"x-request-id", b"a\x1b[31m\tERROR")]
        assert (await client.get("/x%0aERROR%20forged%1b[31m", headers=headers)).status_code == 500
    message = caplog.records[-1].getMessage().partition("ZeroDivisionError")[0]
    assert not re.search(r"[\x00-\x1f\x7f]", message)
