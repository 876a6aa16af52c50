"""Ten thousand connections that say what nobody should: every answer is HTTP, none is our fault, all live on.

The same every time, unless FUZZ_SEED says otherwise; a failure names the seed and the payload.
"""

import asyncio
import os
import random
import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.fuzz.payloads import Fields, HttpMutator, is_head
from tests.stack.raw_http import RawConnection, Response

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

SEED = os.environ.get("FUZZ_SEED", "1")
NUM_CASES = 10_000
AT_ONCE = 400
PLANNED, LATE = 503, 504
ENDLESS = "/live/events"
RECEIVE_TIMEOUT_S = 0.5
"""Many cases wait for it."""
INTERNALS = re.compile(rb"Traceback|0x[0-9a-f]{6}|/site-packages|\.py\b")


def paths_and_fields(stack: "Stack") -> tuple[list[str], Fields]:
    """As the server's own document has them, but for the one whose answer never ends."""
    document = httpx2.get(f"{stack.base_url}/openapi.json", timeout=60).json()
    fields: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        if "requestBody" in operations.get("post", {}):
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            name = schema["$ref"].rpartition("/")[2]
            fields[path] = [
                *document["components"]["schemas"][name]["properties"],
                "tools",
                "response_format",
            ]
    return [path for path in document["paths"] if path != ENDLESS], fields


def check(response: Response, *, timed: bool = False) -> None:
    """Nothing that is our fault, and nothing of our insides. `timed`: the client sets its deadline."""
    planned = {PLANNED, LATE} if timed else {PLANNED}
    assert response.status < 500 or response.status in planned, response
    if response.status >= 400 and response.body:
        assert response.code
        assert not INTERNALS.search(response.body), response


async def converse(stack: "Stack", payload: bytes, ending: str) -> list[int]:
    """Send it, and read what comes: statuses. `ending`: what is done after sending."""
    statuses: list[int] = []
    async with await RawConnection.open(stack) as connection:
        connection.send(payload)
        if ending == "reset":
            await connection.reset()
            return statuses
        if ending == "half close":
            with suppress(OSError):
                connection.half_close()
        with suppress(EOFError, ConnectionError):
            while True:
                response = await connection.response(has_body=bool(statuses) or not is_head(payload))
                check(response)
                statuses.append(response.status)
                if len(statuses) == 1:
                    with suppress(OSError):
                        connection.half_close()
    return statuses


@pytest.mark.timeout(300)
async def test_anything_over_the_wire(target: "Stack") -> None:
    paths, fields = paths_and_fields(target)
    mutator, chance = HttpMutator(SEED, paths, fields), random.Random(SEED)
    endings = ["wait"] * 6 + ["half close", "reset"]
    cases = ((mutator.next(), chance.choice(endings)) for _ in range(NUM_CASES))
    seen: Counter[int] = Counter()
    num_sent = 0

    async def worker() -> None:
        nonlocal num_sent
        for payload, ending in cases:
            try:
                seen.update(await converse(target, payload, ending))
                num_sent += 1
            except Exception as error:
                error.add_note(f"FUZZ_SEED={SEED} {ending} {payload[:2000]!r}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    assert num_sent == NUM_CASES
    for status in (200, 400, 404, 405, 408, 431):
        assert seen[status], f"no case came so far: {seen}"
