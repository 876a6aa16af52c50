"""Calls as models write them, and what a reader tells of such a text."""

import json
from random import Random
from typing import Any

from frontend.parts import Part, Reader, ReasoningPart, TextPart, ToolCallArguments, ToolCallStart
from frontend.tool_formats.formats import FORMATS
from frontend.tools import Tool

PROPERTIES = {"city": {"type": "string"}, "s": {"type": ["string", "null"]}, "n": {"type": "array"}}
TOOLS = [
    Tool("get_weather", parameters={"type": "object", "properties": PROPERTIES}),
    Tool("set-timer"),
    Tool("now"),
    Tool("wait"),
]
OSLO, PARIS = {"city": "Oslo"}, {"city": 'Paris, "} ] </tool_call> 🐦\\', "n": [1, {"x": None}], "f": -1.5e3}


def told(reader: Reader, pieces: list[str]) -> dict[str, Any]:
    """What a client knows in the end, and that it was told in order."""
    parts: list[Part] = []
    for piece in pieces:
        parts += reader.feed(piece)
        if reader.done:
            break
    parts += reader.finish()
    text, calls = "", list[dict[str, str]]()
    for part in parts:
        match part:
            case TextPart():
                assert part.text
                text += part.text
            case ToolCallStart():
                assert part.index == len(calls)
                calls.append({"id": part.id, "name": part.name, "arguments": ""})
            case ToolCallArguments():
                assert part.text
                assert part.index == len(calls) - 1
                calls[part.index]["arguments"] += part.text
            case ReasoningPart():
                pass
    assert reader.num_calls == len(calls)
    return {"text": text, "calls": [(one["id"], one["name"], one["arguments"]) for one in calls]}


def read(name: str, text: str, *, single: bool = False) -> dict[str, Any]:
    """Whole, by characters, and cut in twenty random ways: always the same."""
    rng = Random(text)
    cuts = [[text], list(text)]
    for _ in range(20):
        points = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(1, 6)))
        cuts.append([text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)])
    outcomes = [told(FORMATS[name].reader(TOOLS, lambda i: f"id{i}", single=single), cut) for cut in cuts]
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


def call(key: str, name: str, arguments: object) -> str:
    return json.dumps({"name": name, key: arguments})


def hermes(name: str, arguments: object) -> str:
    return f"<tool_call>\n{call('arguments', name, arguments)}\n</tool_call>"


def coder(**arguments: str) -> str:
    members = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function=get_weather>\n{members}</function>\n</tool_call>"


def glm(name: str, *members: tuple[str, str], line: str = "\n") -> str:
    pairs = [f"<arg_key>{key}</arg_key>{line}<arg_value>{value}</arg_value>{line}" for key, value in members]
    return f"<tool_call>{name}{line}{''.join(pairs)}</tool_call>"


def fenced(name: str, arguments: object) -> str:
    """DeepSeek V3 and R1."""
    inner = f"{name}\n```json\n{json.dumps(arguments, ensure_ascii=False)}\n```"
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{inner}<｜tool▁call▁end｜>"


def unfenced(name: str, arguments: object) -> str:
    """DeepSeek V3.1."""
    inner = json.dumps(arguments, ensure_ascii=False)
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{inner}<｜tool▁call▁end｜>"


def dsml(name: str, *members: tuple[str, str, str], line: str = "\n") -> str:
    """DeepSeek V3.2: of each argument its name, "true" if it is a text, and its value."""
    tags = [
        f'<｜DSML｜parameter name="{key}" string="{is_text}">{value}</｜DSML｜parameter>{line}'
        for key, is_text, value in members
    ]
    return f'<｜DSML｜invoke name="{name}">{line}{"".join(tags)}</｜DSML｜invoke>{line}'


def harmony(name: str, arguments: object, end: str = "<|call|>") -> str:
    head = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{head}{json.dumps(arguments, ensure_ascii=False)}{end}"
