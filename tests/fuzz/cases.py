"""Cases: requests that schemathesis makes from an OpenAPI document, right and wrong, no two alike.

Its coverage of every field comes first: each limit, type and choice, kept and broken, and methods and media
types that a path does not know. It costs little; most of the time goes into what is drawn at random.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core import NotSet
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.generation.meta import CoveragePhaseData

Json = dict[str, Any]

NUM_POSITIVE, NUM_NEGATIVE, NUM_BODILESS = 180, 50, 200
"""Drawn of each operation with a body, right and wrong, and of each without but with an id in its path.
60 to 800 a second; where there is less to vary, there are fewer."""
NUM_LARGE = 5
"""Of those with a body, right and wrong, as large as the document lets them be: 10 a second."""
MOST_ITEMS, MOST_CHARS = 2, 6
"""Of each array and free text of all others. Most of the time goes into drawing long ones."""
ENDLESS = ("GET", "/live/events")
BOTH = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


class Case(NamedTuple):
    """One request. `template`: its path as the document has it."""

    template: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def payload(self) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        head = f"{self.method} {self.path} HTTP/1.1\r\nhost: tern\r\n{lines}"
        return f"{head}content-length: {len(self.body)}\r\n\r\n".encode("latin-1") + self.body

    @property
    def timed(self) -> bool:
        """Whether it sets its own deadline."""
        return any(name.lower() == "x-request-timeout" for name, _ in self.headers)


def make(document: Json, seed_: str, factor: int) -> list[Case]:
    """All, in an order that is always the same. `factor`: of how many are drawn."""
    lean = _lean(document)
    made = [*_cover(document), *_cover(lean)]
    for described, num_positive, num_negative in [
        (lean, NUM_POSITIVE, NUM_NEGATIVE),
        (document, NUM_LARGE, NUM_LARGE),
    ]:
        for operation in _operations(described):
            counts = {GenerationMode.POSITIVE: num_positive, GenerationMode.NEGATIVE: num_negative}
            if not operation.body:
                several = described is lean and "{" in operation.path
                counts = {GenerationMode.POSITIVE: NUM_BODILESS if several else 0}
            for mode, count in counts.items():
                if count:
                    made += _draw(operation.as_strategy(generation_mode=mode), factor * count, seed_)
    return list(dict.fromkeys(made))


def _operations(document: Json) -> Iterator[Any]:
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok)
        yield result.ok()


def _cover(document: Json) -> Iterator[Case]:
    """Without its headers where they are not the point: all have the same key and no time at all."""
    for operation in _operations(document):
        config = operation.schema.config.generation_for(operation=operation, phase="coverage")
        for case in operation.schema.iter_coverage_cases(
            operation, generation_modes=BOTH, generation_config=config
        ):
            assert isinstance(case.meta.phase.data, CoveragePhaseData)
            where = case.meta.phase.data.parameter_location
            made = _case(case, with_headers=where in (None, ParameterLocation.HEADER))
            if (made.method, made.template) != ENDLESS:
                yield made


def _draw(strategy: Any, count: int, seed_: str) -> list[Case]:
    """At most so many."""
    found: list[Case] = []

    @seed(seed_)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        found.append(_case(case))

    collect()
    return found


def _case(case: Any, *, with_headers: bool = True) -> Case:
    headers = {str(name): str(value) for name, value in (case.headers or {}).items()} if with_headers else {}
    body = case.body
    if isinstance(body, NotSet):
        body = b""
    elif not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if "content-type" not in map(str.lower, headers):
        headers["content-type"] = case.media_type or "application/json"
    return Case(case.operation.path, case.method, case.formatted_path, tuple(headers.items()), body)


def _lean(schema: Any) -> Any:
    """The same, with short arrays and texts, and with objects of no other than the known fields."""
    if isinstance(schema, list):
        return [_lean(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _lean(value) for name, value in schema.items()}
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
