"""Structured output under fault: always valid, always the same, and nobody else's matter."""

import asyncio
import itertools
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tests.faults.load import KEY, SHARED, Answer, Ask, ask, many, no_fault
from tests.faults.strikes import KILL, at
from tests.frontend.hostile_grammars import HOSTILE
from tests.frontend.test_grammars import stop, until

if TYPE_CHECKING:
    from tests.faults.conftest import NewScene
    from tests.faults.oracles import Scene

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "bird": {"type": "string", "minLength": 20, "maxLength": 60},
            "kind": {"enum": ["tern", "noddy"]},
            "seen": {"type": "array", "items": {"enum": [5, 17, 1204]}, "minItems": 8, "maxItems": 30},
        },
        "required": ["bird", "kind", "seen"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
)
LENGTH = 400
numbers = itertools.count()
"""Each makes another grammar of one."""


def constrained(number: int, **body: Any) -> Ask:
    return ask(f"grammar {number}", LENGTH, ignore_eos=False, guided_json=SCHEMA, **body)


def variants(number: int) -> list[Ask]:
    name = f"grammar {number}"
    warm = {"temperature": 4, "seed": number}
    return [
        constrained(number),
        constrained(number, **warm),
        constrained(number, stream=False, **warm),
        constrained(number, chat=True, **warm),
        constrained(number, n=3, **warm),
        constrained(number, logprobs=1, **warm),
        ask(f"{SHARED} {name}", LENGTH, ignore_eos=False, guided_json=SCHEMA, **warm),
        ask(name, LENGTH, ignore_eos=False, guided_regex="([a-z]{4}-){12}end", **warm),
        ask(f"free {name}", LENGTH // 2),
    ]


def check_valid(asks: list[Ask], answers: list[Answer]) -> None:
    for one, answer in zip(asks, answers, strict=True):
        if "guided_json" in dict(one.body):
            for index, reason in answer.finish_reasons.items():
                assert reason == "stop", answer
                document = json.loads(answer.texts[index])
                assert set(document) == {"bird", "kind", "seen"}
                assert 8 <= len(document["seen"]) <= 30


@pytest.mark.parametrize("worker", ["stub", "bundled"])
@pytest.mark.parametrize("victim", ["worker", "engine_core"])
async def test_killed_in_the_middle_of_constrained_answers(
    scene: "NewScene", worker: str, victim: str
) -> None:
    """Scenarios 1 and 14 again: the same valid answers as if nothing had died."""
    asks = [one for number in range(4 if worker == "stub" else 1) for one in variants(number)]
    async with scene(worker=worker, restarts={victim: 1}) as one:
        answers = await one.load(asks, at(6 * len(asks), one, KILL, victim))
        check_valid(asks, answers)


def helpers(one: "Scene") -> set[int]:
    """Of the one frontend. Quick: a helper that is to be killed at work may be done with it soon."""
    (frontend,) = one.stack.pids["frontend"]
    found = set()
    for listed in Path(f"/proc/{frontend}/task").glob("*/children"):
        for pid in listed.read_text().split():
            with suppress(OSError):  # it has ended
                if b"frontend.grammar_helper" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


async def post(one: "Scene", **fields: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=one.stack.base_url, timeout=60, headers=headers) as client:
        return await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 300, **fields})


FIELDS = {
    "json_schema": "json",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "structural_tag": "structural_tag",
}


async def struck(one: "Scene", number: signal.Signals, pattern: str) -> int:
    """How a request ends, all of whose helpers get a signal while they read its grammar. Asked again, with
    another grammar, while a helper was quicker than the signal."""
    status = 200
    while status == 200:
        reading = asyncio.create_task(post(one, guided_regex=f"{pattern}{next(numbers)}"))
        while not reading.done():
            for pid in helpers(one):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            await asyncio.sleep(0)
        status = reading.result().status_code
    return status


async def test_hostile_grammars(scene: "NewScene") -> None:
    """Scenario 44: invalid and exponential regexes, recursive schemas and their like: 400 each, and so for
    one that the helper dies of; no other process and no other answer notices."""
    async with scene() as one:

        async def throw(_: object) -> None:
            fields = [
                {FIELDS[kind]: json.loads(source) if kind == "choice" else source}
                for kind, source in HOSTILE.values()
            ]
            responses = await asyncio.gather(*(post(one, structured_outputs=field) for field in fields))
            assert [response.status_code for response in responses] == [400] * len(HOSTILE)
            assert all(response.json()["error"]["param"] for response in responses)
            for pid in helpers(one):  # while they are idle: the next grammar starts another
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not helpers(one))
            one.stack.hold.release()  # whose helper was quicker than the signal, is answered
            assert await struck(one, signal.SIGSEGV, "segmentation (fault)?") == 400

        await one.load([*many(12, 600), *variants(7)], throw)


async def test_a_helper_is_killed(scene: "NewScene") -> None:
    """Scenario 48: kill -9 of the helper while it reads a grammar: it is read again, by another; killed
    again, the request ends with 500. Others get their answers."""
    async with scene() as one:
        expected = await post(one, guided_regex="a{5}")
        assert expected.json()["choices"][0]["text"] == "aaaaa"
        (only,) = helpers(one)
        await stop(only)
        reading = asyncio.create_task(post(one, guided_regex="b{5}"))
        others = await one.load(variants(1), no_fault)  # by a helper of their own
        check_valid(variants(1), others)
        assert not reading.done()
        os.kill(only, signal.SIGKILL)
        assert (await reading).json()["choices"][0]["text"] == "bbbbb"

        assert await struck(one, signal.SIGKILL, "c{5}") == 500
        await one.load(variants(2), no_fault)
