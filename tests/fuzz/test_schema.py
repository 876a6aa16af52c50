"""Ten thousand requests made from the served OpenAPI document, right and wrong: none is our fault.

Schemathesis makes the first third, at 10 to 400 a second; the others are bred from those: each has fields of
several. With FUZZ_FACTOR=4 schemathesis makes ten thousand by itself. The same every time, unless FUZZ_SEED
says otherwise; a failure names the seed and the request.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core import NotSet

from tests.fuzz.test_http import check
from tests.stack.raw_http import RawConnection

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

SEED = os.environ.get("FUZZ_SEED", "1")
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
NUM_CASES = 10_000 * FACTOR
AT_ONCE = 32
RECEIVE_TIMEOUT_S = 60
"""None waits for it, even on a busy machine."""
NUM_POSITIVE, NUM_NEGATIVE, NUM_BODILESS = 180, 50, 300
"""By schemathesis, of each operation with a body, right and wrong, and of each without but with an id in its
path. 100 to 400 a second; where there is less to vary, it makes fewer."""
NUM_LARGE = 5
"""Of those with a body, right and wrong, as large as the document lets them be: 10 a second."""
MOST_ITEMS, MOST_CHARS = 2, 6
"""Of each array and free text of all others. Most of the time goes into drawing long ones."""
ENDLESS = "/live/events"


class Case(NamedTuple):
    """One request. `template`: its path as the document has it. `body`: JSON data, or bytes as they are."""

    template: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def payload(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        fields = {"host": "tern", "content-type": "application/json", "content-length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**self.headers, **fields}.items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def make(document: dict[str, Any]) -> Iterator[Case]:
    """All that schemathesis makes."""
    plan = [(lean(document), NUM_POSITIVE, NUM_NEGATIVE), (document, NUM_LARGE, NUM_LARGE)]
    for described, num_positive, num_negative in plan:
        for result in schemathesis.openapi.from_dict(described).get_all_operations():
            operation = result.ok()
            counts = {GenerationMode.POSITIVE: num_positive, GenerationMode.NEGATIVE: num_negative}
            if not operation.body:
                several = NUM_BODILESS if "{" in operation.path else 1
                counts = {GenerationMode.POSITIVE: several if described is not document else 0}
            for mode, count in counts.items():
                if count and operation.path != ENDLESS:
                    yield from draw(operation.as_strategy(generation_mode=mode), FACTOR * count)


def lean(schema: Any) -> Any:
    """The same, with short arrays and texts, and with objects of no other than the known fields."""
    if isinstance(schema, list):
        return [lean(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: lean(value) for name, value in schema.items()}
    match made.get("type"):
        case "array":
            made["maxItems"] = max(min(made.get("maxItems", MOST_ITEMS), MOST_ITEMS), made.get("minItems", 0))
        case "object":
            made |= {"additionalProperties": False} if "properties" in made else {"maxProperties": 1}
        case "string" if not {"pattern", "format", "enum"} & made.keys():
            made["maxLength"] = max(
                min(made.get("maxLength", MOST_CHARS), MOST_CHARS), made.get("minLength", 0)
            )
    return made


def draw(strategy: Any, count: int) -> list[Case]:
    """At most so many."""
    found: list[Case] = []

    @seed(SEED)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        body = b"" if isinstance(case.body, NotSet) else case.body
        headers = {name: str(value) for name, value in (case.headers or {}).items()}
        found.append(Case(case.operation.path, case.method, case.formatted_path, headers, body))

    collect()
    return found


def breed(parents: list[Case], count: int) -> Iterator[Case]:
    """Objects that have some of their fields, and their headers, of others of the same path."""
    chance = random.Random(SEED)
    by_path: dict[str, list[Case]] = {}
    for parent in parents:
        if isinstance(parent.body, dict):
            by_path.setdefault(parent.template, []).append(parent)
    for _ in range(count):
        family = by_path[chance.choice(list(by_path))]
        mother, *others = chance.choices(family, k=chance.randint(2, 5))
        body = dict(mother.body)
        for other in others:
            for name in chance.sample(sorted(other.body), min(2, len(other.body))):
                body[name] = other.body[name]
        yield mother._replace(body=body, headers=others[0].headers if chance.random() < 0.2 else {})


@pytest.mark.timeout(900 * FACTOR)
async def test_everything_that_the_document_allows_and_more(target: "Stack") -> None:
    async with await RawConnection.open(target) as connection:
        connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: tern\r\n\r\n")
        made = list(make((await connection.response()).json))
    assert len(made) > 2500 * FACTOR
    print(f"{len(made)} made by schemathesis")
    cases = iter([*made, *breed(made, NUM_CASES - len(made))])
    seen: Counter[int] = Counter()

    async def worker() -> None:
        for case in cases:
            try:
                async with await RawConnection.open(target) as connection:
                    connection.send(case.payload)
                    response = await connection.response()
                check(response, timed="x-request-timeout" in map(str.lower, case.headers))
                seen[response.status] += 1
            except Exception as error:
                error.add_note(f"FUZZ_SEED={SEED} {case.payload[:2000]!r}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    assert seen.total() == NUM_CASES
    assert seen[200] > 500, seen
    assert seen[400] > 1000, seen
