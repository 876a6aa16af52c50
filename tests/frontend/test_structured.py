"""Every spelling of what an answer must look like, and what is wrong with the others."""

import json
from typing import Any

import httpx2
import pytest

from tests.frontend.conftest import END
from tests.frontend.fake_engine import FakeEngine

CHAT_URL, TEXT_URL = "/v1/chat/completions", "/v1/completions"
BODY = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}

SAME: list[list[dict[str, Any]]] = [
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None, "disable_fallback": True}},
        {"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"},
        {"guided_json": json.dumps(SCHEMA), "response_format": {"type": "text"}},
    ],
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"guided_json": {"type": "object"}},
    ],
    [{"structured_outputs": {"regex": "[ab]+"}}, {"guided_regex": "[ab]+", "structured_outputs": None}],
    [{"structured_outputs": {"choice": ["a", "b"]}}, {"guided_choice": ["a", "b"]}],
    [{"structured_outputs": {"grammar": 'start: "a"'}}, {"guided_grammar": 'start: "a"'}],
    [
        {"structured_outputs": {"structural_tag": TAG}},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
        {"response_format": {"type": "structural_tag", **TAG}},
    ],
    [
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}},
        {"guided_json": SCHEMA, "guided_whitespace_pattern": " "},
    ],
    [{"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}],
    [{"structured_outputs": {}}, {"response_format": None}, {"guided_json": None}, {}],
]


@pytest.mark.parametrize("url", [CHAT_URL, TEXT_URL])
async def test_spellings(http: httpx2.AsyncClient, engine: FakeEngine, url: str) -> None:
    engine.answer = [50]
    seen: list[str] = []
    for spellings in SAME:
        engine.submits.clear()
        for fields in spellings:
            response = await http.post(url, json={**BODY, "n": 2, **fields})
            assert response.status_code == 200, response.text
        found = {submit.grammar for submit in engine.submits}
        assert len(engine.submits) == 2 * len(spellings)
        assert len(found) == 1, spellings
        seen += found
    assert len(set(seen)) == len(SAME)
    assert seen[-1] == "", "nothing was asked for"


async def test_streams_are_constrained_too(live: httpx2.AsyncClient, engine: FakeEngine) -> None:
    engine.answer = [50, END]
    async with live.stream("POST", CHAT_URL, json={**BODY, "stream": True, **SAME[2][0]}) as response:
        assert response.status_code == 200
        await response.aread()
    assert engine.submits[0].grammar


JSON_SCHEMA = "response_format.json_schema"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json"}}, "response_format.type", "invalid enum value"),
    ({"response_format": {}}, "response_format.type", "required"),
    ({"response_format": "json_object"}, "response_format", "expected object"),
    ({"response_format": {"type": "json_schema"}}, JSON_SCHEMA, "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, f"{JSON_SCHEMA}.schema", "required"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        f"{JSON_SCHEMA}.schema",
        '"not"',
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"nullable": True}}}},
        f"{JSON_SCHEMA}.schema",
        "nullable",
    ),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "array"),
    ({"structured_outputs": {"xml": "x"}}, "structured_outputs", "unknown field xml"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "length >= 1"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "expected str"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "enclosed"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "an object or true"),
    (
        {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
        "structured_outputs.disable_additional_properties",
        '"additionalproperties": false into the schema',
    ),
    ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", "unknown name"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "json already says"),
    ({"guided_json": {}, "guided_choice": ["a"]}, "guided_choice", "guided_json already says"),
    (
        {"response_format": {"type": "json_object"}, "guided_regex": "a"},
        "guided_regex",
        "response_format already says",
    ),
    ({"guided_regex": "a", "min_tokens": 3}, "min_tokens", "guided_regex"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "guided_regex"),
    ({"json_schema": {"type": "object"}}, "json_schema", "structured_outputs"),
    ({"regex": "a"}, "regex", "structured_outputs"),
    ({"ebnf": "a"}, "ebnf", "structured_outputs"),
    ({"grammar": "a"}, "grammar", "structured_outputs"),
]


async def test_what_is_wrong_is_refused_by_name(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    for url in (CHAT_URL, TEXT_URL):
        for fields, param, words in WRONG:
            response = await http.post(url, json={**BODY, **fields})
            assert response.status_code == 400, fields
            error = response.json()["error"]
            assert error["param"] == param, error
            assert words in error["message"].lower(), error
    assert engine.submits == []


async def test_a_long_grammar_for_many_answers(http: httpx2.AsyncClient, engine: FakeEngine) -> None:
    choices = [f"{i:x<100}" for i in range(1000)]
    body = {"prompt": [[50]] * 64, "n": 16, "max_tokens": 1, "guided_choice": choices}
    response = await http.post(TEXT_URL, json=body)
    assert response.status_code == 400
    assert "too long for 1024 answers" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (b'"guided_json":{"const":"\xff"}', "guided_json"),
        (
            b'"response_format":{"type":"structural_tag","structures":["\xff"],"triggers":[]}',
            "response_format",
        ),
    ],
)
async def test_what_is_no_utf8_is_refused_by_name(http: httpx2.AsyncClient, field: bytes, param: str) -> None:
    response = await http.post(TEXT_URL, content=b'{"prompt":"x",%b}' % field)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
