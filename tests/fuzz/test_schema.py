"""Ten thousand requests that schemathesis makes from the served OpenAPI document: none is our fault.

Every answer in JSON is what the document says. The same every time, unless FUZZ_SEED says otherwise; with
FUZZ_FACTOR=4 four times as many are drawn. A failure names the seed and the request.
"""

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest

from tests.fuzz.cases import Case, make
from tests.fuzz.test_http import check
from tests.stack.raw_http import RawConnection, Response

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

SEED = os.environ.get("FUZZ_SEED", "1")
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
NUM_CASES = 10_000
AT_ONCE = 32
RECEIVE_TIMEOUT_S = 60
"""None waits for it, even on a busy machine."""


class Promises:
    """What a document says about answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def check(self, case: Case, response: Response) -> None:
        """Those in JSON; of a method that the path does not know, that it is an error as others are."""
        if response.headers.get("content-type") != "application/json":
            assert response.status == 200, response
            return
        operations = self._document["paths"][case.template]
        known = operations.get(case.method.lower())
        assert known is not None or response.status >= 400, response
        answers = (known or next(iter(operations.values())))["responses"]
        answer = answers["200" if response.status == 200 else "default"]
        if "$ref" in answer:
            answer = self._document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        schema = answer["content"]["application/json"].get("schema")
        if schema is not None:
            self._validator(schema["$ref"]).validate(response.json)

    def _validator(self, reference: str) -> jsonschema_rs.Validator:
        if reference not in self._validators:
            whole = {"$ref": reference, "components": self._document["components"]}
            self._validators[reference] = jsonschema_rs.validator_for(whole)
        return self._validators[reference]


@pytest.mark.long
@pytest.mark.timeout(900 * FACTOR)
async def test_everything_that_the_document_allows_and_more(target: "Stack") -> None:
    async with await RawConnection.open(target) as connection:
        connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: tern\r\n\r\n")
        document = (await connection.response()).json
    promises, made = Promises(document), make(document, SEED, FACTOR)
    assert len(made) == len(set(made)) >= NUM_CASES, len(made)
    cases = iter(made)
    seen: Counter[int] = Counter()

    async def worker() -> None:
        for case in cases:
            try:
                async with await RawConnection.open(target) as connection:
                    connection.send(case.payload)
                    response = await connection.response()
                check(response, timed=case.timed)
                promises.check(case, response)
                seen[response.status] += 1
            except Exception as error:
                error.add_note(f"FUZZ_SEED={SEED} {case.payload[:2000]!r}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    print(f"{seen.total()} sent: {seen}")
    assert seen.total() == len(made) >= NUM_CASES
    assert seen[200] > 500, seen
    assert seen[400] > 1000, seen
