"""Requests that are too large, ask for too much, or come without a key: refused at the door, at no cost."""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.conftest import ROOT
from tests.faults.at_rest import Core
from tests.stack.raw_http import RawConnection, Response, ask, completion, request

if TYPE_CHECKING:
    from tests.stack.conftest import Serve, Stack

MIB = 1 << 20
CANARY = "canary-0b3e"
KEY = "key-canary-91d2"
PUBLIC = {"/health", "/health/live", "/health/ready", "/version"}


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


def header() -> Iterator[bytes]:
    yield b"GET /version HTTP/1.1\r\nhost: tern\r\nx: "
    yield from [b"v" * MIB] * 64
    yield b"\r\n\r\n"


def body() -> Iterator[bytes]:
    yield b"POST /v1/completions HTTP/1.1\r\nhost: tern\r\ncontent-length: %d\r\n\r\n" % (100 * MIB)
    yield from [b" " * MIB] * 100


def chunked() -> Iterator[bytes]:
    yield b"POST /v1/completions HTTP/1.1\r\nhost: tern\r\ntransfer-encoding: chunked\r\n\r\n"
    yield from [b"%x\r\n%b\r\n" % (MIB, b" " * MIB)] * 100
    yield b"0\r\n\r\n"


async def insist(stack: "Stack", parts: Iterator[bytes]) -> Response:
    """What the server says while it is sent all of these, or as much as it takes."""
    async with await RawConnection.open(stack) as connection:

        async def send() -> None:
            with suppress(ConnectionError):
                for part in parts:
                    await connection.send_all(part)

        sending = asyncio.create_task(send())
        response = await connection.response()
        sending.cancel()
        return response


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [(header, 431, "headers_too_large"), (body, 413, "body_too_large"), (chunked, 413, "body_too_large")],
)
async def test_more_than_anyone_needs(
    unhurt: "Serve", parts: Callable[[], Iterator[bytes]], status: int, code: str
) -> None:
    """Scenario 33: 64 MiB of header, 100 MiB of body, by length or in chunks; memory stays flat."""
    stack = unhurt()
    (pid,) = stack.pids["frontend"]
    before = rss_bytes(pid)
    for response in await asyncio.gather(*(insist(stack, parts()) for _ in range(4))):
        assert (response.status, response.code) == (status, code)
        assert response.headers.get("connection") == "close" or status == 413
    assert rss_bytes(pid) - before < 48 * MIB
    assert (await ask(stack, completion(prompt="x", max_tokens=5))).status == 200
    assert stack.pids["frontend"] == [pid]


@pytest.mark.parametrize(
    ("unit", "count", "status", "code"),
    [
        (CANARY, MIB, 400, "context_length_exceeded"),
        ([7], 5 * MIB, 400, "invalid_value"),
        (CANARY, 4 * MIB, 413, "body_too_large"),
    ],
    ids=["text", "ids", "body"],
)
async def test_prompts_over_a_frame(
    unhurt: "Serve", unit: "str | list[int]", count: int, status: int, code: str
) -> None:
    """Scenario 36: a prompt that no frame could hold is refused by the frontend and never sent."""
    stack = unhurt("--max-body-bytes", "32MiB")
    before = stack.pids
    response = await ask(stack, completion(prompt=unit * count, max_tokens=5))
    assert (response.status, response.code) == (status, code)
    async with Core.of(stack) as core:
        stats = await core.at_rest()
    assert (stats.prompt_tokens, stats.dropped_frames, stats.steps) == (0, 0, 0)
    assert stack.pids == before
    assert CANARY not in stack.program.output


MILLION = 10**6
FANS: list[tuple[str, dict[str, Any]]] = [
    ("n", {"n": MILLION}),
    ("logprobs", {"logprobs": MILLION}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": MILLION, "messages": []}),
    ("stop", {"stop": ["x"] * 10_000}),
    ("stop", {"stop": ["x" * MILLION]}),
    ("stop_token_ids", {"stop_token_ids": [1] * 10_000}),
    ("logit_bias", {"logit_bias": dict.fromkeys(map(str, range(10_000)), 1)}),
    ("best_of", {"best_of": MILLION}),
    ("prompt", {"prompt": ["x"] * 10_000}),
    ("prompt", {"prompt": ["x"] * 1000, "n": 16}),
    ("max_tokens", {"max_tokens": 10**18}),
    ("min_tokens", {"min_tokens": MILLION}),
    ("cache_salt", {"cache_salt": "x" * MILLION}),
]


async def test_wishes_that_multiply(unhurt: "Serve") -> None:
    """Scenario 45: n, logprobs, stops and the like are capped before anything is done."""
    stack = unhurt()
    for param, fields in FANS:
        path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
        if "messages" in fields:
            fields = {**fields, "messages": [{"role": "user", "content": CANARY}]}
        asked: dict[str, Any] = {"prompt": CANARY, **fields}
        response = await ask(stack, completion(path, **asked))
        assert response.status == 400, (param, response)
        assert response.json["error"]["param"].partition("[")[0] == param
        assert len(response.json["error"]["message"]) < 1000
    async with Core.of(stack) as core:
        assert (await core.at_rest()).steps == 0
    assert CANARY not in stack.program.output


def routes() -> set[tuple[str, str]]:
    """(method, path) of all, as the app's source registers them."""
    source = (ROOT / "frontend" / "app.py").read_text()
    found = re.findall(r'\b(get|post|delete)\("(/[^"]*)"', source)
    found += [("get", path) for path in re.findall(r'"(/[^"]*)": service\.', source)]
    return {(method, path.replace(":path}", "}")) for method, path in found}


async def test_every_route_needs_the_key(unhurt: "Serve") -> None:
    """Scenario 46: whatever the route, the method and the wrong key; and the document lists all routes."""
    stack = unhurt(TERN_API_KEY=KEY)
    document = (await ask(stack, request("GET", "/openapi.json", authorization=f"Bearer {KEY}"))).json
    described = {(method, path) for path, one in document["paths"].items() for method in one}
    assert described == routes()
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": "Bearer "},
        {"x-api-key": f"Bearer {KEY}"},
        {"x-api-key": KEY[:-1]},
        {"cookie": f"authorization=Bearer {KEY}"},
    ]
    known = [(method.upper(), path) for method, path in sorted(routes())]
    unknown = [("GET", "/nowhere"), ("GET", "/docs"), ("POST", "/v1/embeddings"), ("GET", "/v1/models/")]
    for method, path in known + unknown:
        async with await RawConnection.open(stack) as connection:
            for other in (method, "PUT", "DELETE", "OPTIONS"):
                for headers in wrong:
                    connection.send(request(other, path.format(id="tiny"), b"{}", **headers))
                    response = await connection.response()
                    if path in PUBLIC:
                        assert response.status == (200 if other == method else 405)
                    else:
                        assert (response.status, response.code) == (401, "invalid_api_key"), (other, path)
                        assert response.headers["www-authenticate"] == "Bearer"
                        assert KEY.encode() not in response.body
    rights: list[dict[str, str]] = [{"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}]
    for right in rights:
        assert (await ask(stack, request("GET", "/v1/models", **right))).json["data"][0]["id"] == "tiny"
    assert KEY not in stack.program.output


TRICKS = [
    b"GET /v1/models HTTP/1.1\r\nhost: x/health?\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x/version#\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: tern/health/live?x=\r\n\r\n",
    b"GET http://x/v1/models HTTP/1.1\r\nhost: x/health?\r\n\r\n",
    b"GET http://x/health?/../v1/models HTTP/1.1\r\nhost: tern\r\nx-original-url: /v1/models\r\n\r\n",
    b"GET /health/../v1/models HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /health/%2e%2e/v1/models HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /health%2f..%2fv1/models HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /health;/../v1/models HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET //health/../v1/models HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /v1%2fmodels HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /V1/MODELS HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /v1/models?/health HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /v1/models#/health HTTP/1.1\r\nhost: tern\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: tern\r\nx-forwarded-for: 127.0.0.1\r\nx-rewrite-url: /health\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: tern\r\nconnection: authorization\r\nauthorization: Bearer\r\n\r\n",
    b"HEAD /v1/models HTTP/1.1\r\nhost: tern\r\n\r\n",
]


async def test_ways_around_the_key(unhurt: "Serve") -> None:
    """Scenario 46: no Host header, path or rewriting header makes a closed route look like an open one."""
    stack = unhurt(TERN_API_KEY=KEY)
    for trick in TRICKS:
        async with await RawConnection.open(stack) as connection:
            connection.send(trick)
            response = await connection.response(has_body=not trick.startswith(b"HEAD"))
            assert b'"tiny"' not in response.body, trick
            assert response.status in (400, 401, 404) or b'"ready"' in response.body, (trick, response)
    secret = msgspec.json.encode({"prompt": CANARY})
    smuggled = request("POST", "/health", secret) + request("POST", "/v1/completions", secret)
    async with await RawConnection.open(stack) as connection:
        connection.send(smuggled)
        assert (await connection.response()).status == 405
        assert (await connection.response()).status == 401
    async with Core.of(stack) as core:
        assert (await core.at_rest()).steps == 0
    assert CANARY not in stack.program.output
