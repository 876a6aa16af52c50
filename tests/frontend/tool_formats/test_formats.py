"""Every format as its models write it: the same parts however the text is cut, and nothing is ever lost."""

import json
from typing import Any

import pytest

from frontend.parts import TextPart
from frontend.tool_formats.formats import FORMATS, format_named, format_of
from tests.frontend.tool_formats.written import (
    OSLO,
    PARIS,
    TOOLS,
    call,
    coder,
    dsml,
    fenced,
    glm,
    harmony,
    hermes,
    read,
    unfenced,
)

GOOD: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", "Just text, 1 < 2 and <b>bold</b>.\n", "Just text, 1 < 2 and <b>bold</b>.\n", []),
    ("hermes", hermes("get_weather", OSLO), "", [("get_weather", OSLO)]),
    (
        "hermes",
        "Let me look. \n\n" + hermes("get_weather", PARIS) + "\n" + hermes("set-timer", {}) + "\nThere.\n",
        "Let me look.\nThere.",
        [("get_weather", PARIS), ("set-timer", {})],
    ),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "set-timer"}', "", [("set-timer", {"a": 1})]),
    ("hermes", '<tool_call>{"name":"set-timer"}</tool_call>', "", [("set-timer", {})]),
    ("hermes", '<tool_call>{"name":"set-timer","arguments":null}</tool_call>', "", [("set-timer", {})]),
    ("hermes", '<tool_call>{"name":"set-timer","arguments":"{\\"a\\": 1}"}', "", [("set-timer", {"a": 1})]),
    ("hermes", '<tool_call>{"id":[1,"}"],"name":"set-timer","arguments":{}}', "", [("set-timer", {})]),
    ("llama3_json", call("parameters", "get_weather", PARIS), "", [("get_weather", PARIS)]),
    ("llama3_json", "<|python_tag|>" + call("parameters", "get_weather", OSLO), "", [("get_weather", OSLO)]),
    (
        "llama3_json",
        f"{call('parameters', 'get_weather', OSLO)}; {call('arguments', 'set-timer', {})}",
        "",
        [("get_weather", OSLO), ("set-timer", {})],
    ),
    (
        "llama3_json",
        "Let me look.<|python_tag|>" + call("parameters", "get_weather", OSLO),
        "Let me look.",
        [("get_weather", OSLO)],
    ),
    (
        "llama3_json",
        f"<|python_start|>{call('parameters', 'get_weather', OSLO)}<|python_end|>",
        "",
        [("get_weather", OSLO)],
    ),
    (
        "llama3_json",
        f"<|python_start|><|python_end|>{call('parameters', 'get_weather', OSLO)}",
        "",
        [("get_weather", OSLO)],
    ),
    ("llama3_json", 'Like this: {"name": "get_weather"}', 'Like this: {"name": "get_weather"}', []),
    ("mistral", f"[TOOL_CALLS] [{call('arguments', 'get_weather', PARIS)}]", "", [("get_weather", PARIS)]),
    (
        "mistral",
        f"Well.[TOOL_CALLS][{call('arguments', 'get_weather', OSLO)}, {call('arguments', 'set-timer', {})}]",
        "Well.",
        [("get_weather", OSLO), ("set-timer", {})],
    ),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "set-timer", "arguments": {}, "id": "abcdefghi"}]',
        "",
        [("set-timer", {})],
    ),
    (
        "mistral",
        f"[TOOL_CALLS]get_weather[ARGS]{json.dumps(PARIS)}[TOOL_CALLS]set-timer[CALL_ID]abc123[ARGS]{{}}",
        "",
        [("get_weather", PARIS), ("set-timer", {})],
    ),
    ("mistral", '[TOOL_CALLS]get_weather{"city": "Oslo"}', "", [("get_weather", OSLO)]),
    ("pythonic", '[get_weather(city="Oslo")]', "", [("get_weather", OSLO)]),
    (
        "pythonic",
        """<|python_start|>[get_weather(city='a\\n"(]\\'', n=[1, -2.5, (True, None)]), now( ),"""
        """wait(x={"a": null})]<|python_end|>.""",
        ".",
        [
            ("get_weather", {"city": "a\n\"(]'", "n": [1, -2.5, [True, None]]}),
            ("now", {}),
            ("wait", {"x": {"a": None}}),
        ],
    ),
    ("pythonic", "[1, 2] and so on", "[1, 2] and so on", []),
    ("qwen3_coder", coder(city="Oslo"), "", [("get_weather", OSLO)]),
    (
        "qwen3_coder",
        "So:\n" + coder(city='\n"a" <b>\n\n', n="[1, {}]", f="1e999", x="True", s="None") + "\n" + coder(),
        "So:",
        [
            ("get_weather", {"city": '\n"a" <b>\n\n', "n": [1, {}], "f": "1e999", "x": True, "s": None}),
            ("get_weather", {}),
        ],
    ),
    ("qwen3_coder", "<function=now>\n</function>", "", [("now", {})]),
    (
        "qwen3_coder",
        "<tool_call><function=get_weather><parameter=city>\nOslo\n<parameter=s>12</function></tool_call>",
        "",
        [("get_weather", {"city": "Oslo", "s": "12"})],
    ),
    (
        "glm45",
        "\nLet me look.\n"
        + glm("get_weather", ("city", "Oslo"), ("n", "[1, {}]"), ("s", "null"), ("x", "a b"))
        + "\n"
        + glm("now"),
        "\nLet me look.",
        [("get_weather", {"city": "Oslo", "n": [1, {}], "s": None, "x": "a b"}), ("now", {})],
    ),
    (
        "glm45",
        glm("get_weather", ("city", ' "O" <b>\n'), line="") + glm("set-timer", ("minutes", "3"), line=""),
        "",
        [("get_weather", {"city": ' "O" <b>\n'}), ("set-timer", {"minutes": 3})],
    ),
    ("glm45", "<tool_call>now</tool_call>There.", "There.", [("now", {})]),
    (
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo<arg_key>s</arg_key><arg_value>1</tool_call>",
        "",
        [("get_weather", {"city": "Oslo", "s": "1"})],
    ),
    (
        "deepseek_v3",
        f"So.<｜tool▁calls▁begin｜>{fenced('get_weather', PARIS)}\n{fenced('now', {})}<｜tool▁calls▁end｜>",
        "So.",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "deepseek_v3",
        f"<｜tool▁calls▁begin｜>{unfenced('get_weather', PARIS)}{unfenced('set-timer', {})}"
        "<｜tool▁calls▁end｜>",
        "",
        [("get_weather", PARIS), ("set-timer", {})],
    ),
    ("deepseek_v3", f"{unfenced('now', {})} Done.", "Done.", [("now", {})]),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}", "", [("now", {})]),
    (
        "deepseek_v32",
        "So.\n\n<｜DSML｜function_calls>\n"
        + dsml("get_weather", ("city", "true", ' "O" </b>\n'), ("n", "false", "[1, {}]"), ("x", "true", "5"))
        + dsml("now")
        + "</｜DSML｜function_calls>",
        "So.",
        [("get_weather", {"city": ' "O" </b>\n', "n": [1, {}], "x": "5"}), ("now", {})],
    ),
    (
        "deepseek_v32",
        f"<｜DSML｜tool_calls>{dsml('set-timer', ('min', 'false', '3'), line='')}</｜DSML｜tool_calls>There.",
        "There.",
        [("set-timer", {"min": 3})],
    ),
    (
        "deepseek_v32",
        '<｜DSML｜invoke name="get_weather"><｜DSML｜parameter name="city">Oslo</｜DSML｜parameter>'
        '<｜DSML｜parameter name="s" string="false">null</｜DSML｜invoke>',
        "",
        [("get_weather", {"city": "Oslo", "s": None})],
    ),
    ("openai", "Plain text, <b>bold</b>.\n", "Plain text, <b>bold</b>.\n", []),
    ("openai", "<|channel|>final<|message|>It is 21 °C. <|x|>", "It is 21 °C. <|x|>", []),
    ("openai", harmony("get_weather", PARIS, end=""), "", [("get_weather", PARIS)]),
    (
        "openai",
        "<|channel|>analysis<|message|>Which city?<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look."
        f"<|end|><|start|>assistant{harmony('get_weather', OSLO)}<|start|>assistant{harmony('now', {})}",
        "I look.",
        [("get_weather", OSLO), ("now", {})],
    ),
    (
        "openai",
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
        "",
        [("get_weather", OSLO)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "rest", "calls"), GOOD)
def test_calls(name: str, text: str, rest: str, calls: list[tuple[str, Any]]) -> None:
    found = read(name, text)
    assert found["text"] == rest
    ids = [f"id{i}" for i in range(len(calls))]
    assert [one[0] for one in found["calls"]] == ids
    assert [(one[1], json.loads(one[2])) for one in found["calls"]] == calls


MALFORMED = [
    ("hermes", "<tool_call>{'name': 'get_weather'}</tool_call>"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call> and on'),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": "no object"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": 12}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get_weather", "name": "set-timer"}</tool_call>'),
    ("hermes", '<tool_call>{"city": "Oslo"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get_wea'),
    ("hermes", "I would write <tool_call> here, or <tool_c"),
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_call>[1]</tool_call>"),
    ("llama3_json", '{"name": "Ada", "age": 36}'),
    ("llama3_json", '{"a": {"name": "get_weather", "parameters": {}}}'),
    ("llama3_json", "<|python_tag|>print(1)"),
    ("llama3_json", "{}"),
    ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("mistral", "[TOOL_CALLS] nothing at all " + "x" * 300),
    ("mistral", '[TOOL_CALLS] [{"nome": "get_weather"}]'),
    ("mistral", "[TOOL_CALLS] ["),
    ("pythonic", "[unknown(a=1)]"),
    ("pythonic", "[now(1)]"),
    ("pythonic", "[now(**{})]"),
    ("pythonic", "[now(a=open('x'))]"),
    ("pythonic", "[now(a=1e999)]"),
    ("pythonic", "[now(a=" + "[" * 100 + "]" * 100 + ")]"),
    ("pythonic", "[now(a=1"),
    ("pythonic", "[now(a=')"),
    ("pythonic", "[now(a=1]"),
    ("pythonic", "[now, wait]"),
    ("pythonic", "<|python_start|>now()"),
    ("qwen3_coder", "<tool_call>\n<function=unknown></function></tool_call>"),
    ("qwen3_coder", '<tool_call>\n{"name": "now"}\n</tool_call>'),
    ("qwen3_coder", "<function=no" + "w" * 300),
    ("qwen3_coder", "<function=now"),
    ("glm45", "<tool_call>unknown\n<arg_key>a</arg_key>"),
    ("glm45", '<tool_call>{"name": "now"}</tool_call>'),
    ("glm45", "<tool_call>now<b>"),
    ("glm45", "<tool_call>no"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜> what"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>unknown\n```json\n{}"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>unknown<｜tool▁sep｜>{}"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>other<｜tool▁sep｜>now\n{}"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>now<｜tool"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>" + "x" * 300),
    ("deepseek_v32", "<｜DSML｜function_calls> what"),
    ("deepseek_v32", '<｜DSML｜function_calls>\n<｜DSML｜invoke name="unknown">'),
    ("deepseek_v32", '<｜DSML｜invoke what="now">'),
    ("deepseek_v32", '<｜DSML｜invoke name="no' + "w" * 300),
    ("deepseek_v32", '<｜DSML｜invoke name="now"'),
    ("openai", "<|channel|>commentary to=functions.unknown <|constrain|>json<|message|>{}"),
    ("openai", "<|channel|>analysis to=browser.search code<|message|>{}"),
    ("openai", "<|channel|>commentary to=functions.now"),
]


@pytest.mark.parametrize(("name", "text"), MALFORMED)
def test_what_is_no_call_is_text(name: str, text: str) -> None:
    assert read(name, text) == {"text": text, "calls": []}


def test_a_call_that_breaks_off_is_passed_on_as_far_as_it_came() -> None:
    for name, text in [
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Os'),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Os'),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=city>Os"),
        ("glm45", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Os"),
        ("deepseek_v3", '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Os'),
        (
            "deepseek_v32",
            '<｜DSML｜invoke name="get_weather"><｜DSML｜parameter name="city" string="true">Os',
        ),
        ("openai", '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Os'),
    ]:
        assert read(name, text) == {"text": "", "calls": [("id0", "get_weather", '{"city": "Os')]}


def test_a_call_that_turns_bad_in_its_arguments_is_passed_on_as_it_is() -> None:
    found = read("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": Oslo}, x} so')
    assert found["calls"] == [("id0", "get_weather", '{"city": Oslo}')]
    assert found["text"] == "x} so"


@pytest.mark.parametrize("name", FORMATS)
def test_one_call_is_enough(name: str) -> None:
    text = next(text for other, text, _, calls in GOOD if other == name and len(calls) > 1)
    found = read(name, text, single=True)
    assert len(found["calls"]) == 1


TEMPLATES = {
    "{{ '<tool_call>' }}": "hermes",
    "{{ '[TOOL_CALLS] [' }}": "mistral",
    "{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}": "mistral",
    "{% if builtin %}<|python_tag|>{% endif %}": "llama3_json",
    "<tool_call><function=example>": "qwen3_coder",
    "<tool_call>{name}<arg_key>": "glm45",
    "{{ '<｜tool▁calls▁begin｜>' }}": "deepseek_v3",
    "<｜DSML｜function_calls> or <｜tool▁calls▁begin｜>": "deepseek_v32",
    "<|channel|>commentary to=functions.": "openai",
    "[func_name1(params_name1=params_value1)]": "pythonic",
    "{{ messages[0].content }}": None,
}


def test_formats_are_told_from_templates() -> None:
    for template, name in TEMPLATES.items():
        found = format_of(template)
        assert (found.name if found is not None else None) == name
    assert format_named("hermes", "").name == "hermes"


def test_what_is_soon_known_to_be_no_call_is_not_held_back() -> None:
    for name, text in [
        ("llama3_json", '{"city": '),
        ("llama3_json", "[1, "),
        ("hermes", '<tool_call>{"name": "unknown"'),
        ("mistral", "[TOOL_CALLS] 'x"),
        ("pythonic", "[1"),
        ("pythonic", "[unknown("),
        ("qwen3_coder", "<function=unknown>"),
        ("glm45", "<tool_call>u"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>x"),
        ("deepseek_v32", '<｜DSML｜invoke name="unknown">'),
        ("openai", "<|channel|>commentary to=functions.unknown<|message|>"),
    ]:
        reader = FORMATS[name].reader(TOOLS, str, single=False)
        said = "".join(
            part.text for piece in text for part in reader.feed(piece) if isinstance(part, TextPart)
        )
        assert said == text.rstrip(), name
