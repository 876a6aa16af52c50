"""Pieces of calls in any order: none is lost, and a cut changes nothing."""

from random import Random

import pytest

from tests.frontend.tool_formats.written import read

FRAGMENTS: dict[str, list[str]] = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "now"', '{"name": "now", "arguments": {}}', "<tool"],
    "llama3_json": [
        "<|python_tag|>", "<|python_start|>", "<|python_end|>", "; ", '{"name": "now"',
        '{"name": "now", "parameters": {}}', "<|py",
    ],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "now", '{"name": "now"', "[TOOL_CALLS]now[ARGS]{}", "[TOOL"],
    "pythonic": ["[", "now(", ")", "now()", 'a="x"', "<|python_start|>", "<|python_end|>", "<|python", "'"],
    "qwen3_coder": [
        "<tool_call>", "<function=now>", "<function=get_weather>", "</function>", "<parameter=city>",
        "<parameter=n>", "</parameter>", "</tool_call>", "</para", "<parameter=", ">",
    ],
    "glm45": [
        "<tool_call>", "<tool_call>now", "get_weather", "</tool_call>", "<arg_key>city</arg_key>",
        "<arg_value>", "</arg_value>", "<arg_key>", "</arg_", "<arg_key>n</arg_key>",
    ],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>now\n```json\n",
        "now<｜tool▁sep｜>", "{}", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```", "<｜tool",
    ],
    "deepseek_v32": [
        "<｜DSML｜function_calls>", '<｜DSML｜invoke name="now">', '<｜DSML｜invoke name="get_weather">',
        '<｜DSML｜parameter name="city" string="true">', '<｜DSML｜parameter name="n">',
        "</｜DSML｜parameter>", "</｜DSML｜invoke>", "</｜DSML｜function_calls>", "<｜DSML", ">",
    ],
}  # fmt: skip
JSON_FRAGMENTS = [', "arguments": ', '{"a": 1}', "{", "}", "[", "]", ", ", '"', "\\", "null", " ", "\n", "x"]


@pytest.mark.parametrize("name", FRAGMENTS)
def test_whatever_comes_is_read_the_same_however_it_is_cut_and_not_lost(name: str) -> None:
    rng = Random(name)
    calls = 0
    for _ in range(150):
        fragments = [*FRAGMENTS[name] * 2, *JSON_FRAGMENTS]
        text = "".join(rng.choice(fragments) for _ in range(rng.randint(1, 12)))
        found = read(name, text, single=rng.random() < 0.3)
        calls += len(found["calls"])
        assert found["calls"] or found["text"] == text
    assert calls
