"""What a grammar lets through in each format is read as calls that follow their schemas."""

import json
from typing import Any

import jsonschema_rs
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer as Backend

from frontend.grammar_messages import JsonStyle
from frontend.grammar_texts import make_text
from frontend.grammars import Constraint
from frontend.parts import Part, TextPart, ToolCallArguments, ToolCallStart
from frontend.reading import Budget, Formats, Reading, plan_reading
from frontend.reasoning import MARKS, Begins
from frontend.tool_formats.formats import FORMATS, format_named
from frontend.tool_formats.tool_format import FramingFormat, ToolFormat
from frontend.tools import Tool, ToolUse
from protocol.errors import Unsupported
from tests.frontend.conftest import train_byte_level
from tests.frontend.tool_formats.written import coder, dsml, fenced, glm, harmony, unfenced

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer"}},
        "at": {"$ref": "#/$defs/point"},
        "note": {"type": ["string", "null"]},
    },
    "required": ["city", "days"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
TOOLS = (Tool("get_weather", parameters=SCHEMA, strict=True), Tool("now", strict=True))
ARGUMENTS: dict[str, Any] = {
    "city": 'Oslo "S" </b>\n🐦',
    "unit": "F",
    "days": [1, -2],
    "at": {"x": 1.5},
    "note": None,
}
FEWER: dict[str, Any] = {"city": "", "days": []}
TEXT = Constraint("response_format", "regex", "(yes|no)")


def bare(arguments: dict[str, Any]) -> dict[str, str]:
    return {key: one if isinstance(one, str) else json.dumps(one) for key, one in arguments.items()}


def plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def written(kind: str, arguments: dict[str, Any]) -> str:
    """A call of the first tool."""
    call = {"name": "get_weather", "arguments": arguments}
    match kind:
        case "hermes":
            return f"<tool_call>\n{plain(call)}\n</tool_call>"
        case "llama3_json":
            return plain({"name": "get_weather", "parameters": arguments})
        case "mistral":
            return f"[TOOL_CALLS]get_weather[ARGS]{plain(arguments)}"
        case "pythonic":
            inner = ", ".join(f"{key}={plain(one)}" for key, one in arguments.items())
            return f"[get_weather({inner})]"
        case "qwen3_coder":
            return coder(**bare(arguments))
        case "glm45":
            return glm("get_weather", *bare(arguments).items(), line="")
        case "deepseek_v3":
            return f"<｜tool▁calls▁begin｜>{fenced('get_weather', arguments)}<｜tool▁calls▁end｜>"
        case "deepseek_v31":
            return f"<｜tool▁calls▁begin｜>{unfenced('get_weather', arguments)}<｜tool▁calls▁end｜>"
        case "deepseek_v32":
            members = [
                (key, "true" if key in ("city", "unit", "note") else "false", one)
                for key, one in bare(arguments).items()
            ]
            return f"<｜DSML｜function_calls>\n{dsml('get_weather', *members)}</｜DSML｜function_calls>"
        case "openai":
            thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            return f"{thought}{harmony('get_weather', arguments, end='')}"
    raise AssertionError(kind)


KINDS = [*FORMATS, "deepseek_v31"]


class World:
    """A tokenizer in which the marks of a format are tokens, or are not, and a model that writes in it."""

    def __init__(self, kind: str, *, tokens: bool) -> None:
        name = kind.removesuffix("1") if kind == "deepseek_v31" else kind
        self.format: ToolFormat = format_named(name, "no fences" if kind == "deepseek_v31" else "```")
        if kind == "mistral":
            self.format = FORMATS["mistral"]
        self.backend: Backend = train_byte_level()
        if tokens:
            self.backend.add_special_tokens(list(self.format.marks))
        size = self.backend.get_vocab_size()
        self.tokenizer = LLTokenizer(self.backend.to_str(), n_vocab=size, eos_token=0)
        known = {mark: self.backend.token_to_id(mark) for mark in self.format.marks}
        ids = {mark: one for mark, one in known.items() if one is not None}
        framing = self.format if isinstance(self.format, FramingFormat) else None
        self.formats = Formats(self.format, None, framing, True, ids)

    def reading(self, choice: Any, tools: tuple[Tool, ...] = TOOLS, **options: Any) -> Reading:
        use = ToolUse(tools=tools, choice=choice, **options)
        reading = plan_reading(self.formats, use, "", "r")
        assert reading is not None
        return reading

    def accepts(self, constraint: Constraint | None, text: str) -> bool:
        assert constraint is not None
        assert constraint.kind == "frame"
        grammar = make_text("frame", constraint.source, JsonStyle())
        matcher = LLMatcher(self.tokenizer, grammar)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.backend.encode(text, add_special_tokens=False).ids
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def calls_of(reading: Reading, text: str) -> tuple[str, list[tuple[str, Any]]]:
    reader = reading.reader(0)
    parts: list[Part] = [*reader.feed(text), *reader.finish()]
    calls: list[list[str]] = []
    for part in parts:
        match part:
            case ToolCallStart(name=name):
                calls.append([name, ""])
            case ToolCallArguments(text=more):
                calls[-1][1] += more
            case _:
                pass
    said = "".join(part.text for part in parts if isinstance(part, TextPart))
    return said, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_forced_calls(kind: str, tokens: bool) -> None:
    world = World(kind, tokens=tokens)
    reading = world.reading("required")
    constraint = reading.constrain(None)
    for arguments in (ARGUMENTS, FEWER):
        jsonschema_rs.validate(SCHEMA, arguments)
        text = written(kind, arguments)
        assert world.accepts(constraint, text), text
        assert calls_of(reading, text) == ("", [("get_weather", arguments)])
    for wrong in ({"city": "Oslo"}, {**FEWER, "days": ["x"]}, {**FEWER, "unit": "K"}, {**FEWER, "other": 1}):
        assert not world.accepts(constraint, written(kind, wrong)), wrong
    for no_call in ("yes", "", written(kind, FEWER).replace("get_weather", "get_wether")):
        assert not world.accepts(constraint, no_call)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_or_a_format_of_the_text(kind: str) -> None:
    world = World(kind, tokens=True)
    reading = world.reading("auto")
    constraint = reading.constrain(TEXT)
    before = "<|channel|>final<|message|>" if kind == "openai" else ""
    assert world.accepts(constraint, written(kind, ARGUMENTS))
    assert world.accepts(constraint, f"{before}yes")
    assert calls_of(reading, f"{before}yes") == ("yes", [])
    assert not world.accepts(constraint, f"{before}perhaps")
    assert not world.accepts(constraint, written(kind, {"city": "Oslo"}))


@pytest.mark.parametrize("kind", KINDS)
def test_strict_tools_beside_free_text(kind: str) -> None:
    world = World(kind, tokens=True)
    if kind == "deepseek_v32":
        with pytest.raises(Unsupported, match="its mark <｜DSML｜function_calls> is no token"):
            world.reading("auto").constrain(None)
        return
    constraint = world.reading("auto").constrain(None)
    before = "<|channel|>final<|message|>" if kind == "openai" else ""
    assert world.accepts(constraint, written(kind, ARGUMENTS))
    assert world.accepts(constraint, f"{before}Anything at all.")
    assert not world.accepts(constraint, written(kind, {"city": "Oslo"}))


UNENFORCEABLE = [
    ("qwen3_coder", {"a": {"type": "string", "pattern": "x"}}, "the pattern of a"),
    ("glm45", {"a": {"type": "string", "maxLength": 3}}, "the maxLength of a"),
    ("pythonic", {"a-b": {"type": "integer"}}, "a-b cannot be written"),
    ("pythonic", {"from": {"type": "integer"}}, "from cannot be written"),
]


@pytest.mark.parametrize(("kind", "properties", "why"), UNENFORCEABLE)
def test_what_a_format_cannot_enforce_is_refused_or_forced_in_another(
    kind: str, properties: dict[str, Any], why: str
) -> None:
    world = World(kind, tokens=True)
    tools = (Tool("look", parameters={"type": "object", "properties": properties}, strict=True),)
    with pytest.raises(Unsupported, match=why):
        world.reading("auto", tools).constrain(None)
    forced = world.reading("required", tools)
    assert calls_of(forced, '<tool_call>{"name": "look", "arguments": {}}</tool_call>')[1] == [("look", {})]
    composed = {"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {}}}
    tools = (Tool("look", parameters=composed, strict=True),)
    with pytest.raises(Unsupported, match="anyOf"):
        world.reading("auto", tools).constrain(None)


def test_one_call_where_they_may_not_be_parallel() -> None:
    for kind in KINDS:
        if kind == "openai":
            continue  # its calls end the answer
        world = World(kind, tokens=True)
        one = written(kind, FEWER)
        two = {
            "llama3_json": f"{one}; {one}",
            "pythonic": f"{one[:-1]}, {one[1:]}",
            "deepseek_v3": one.replace("<｜tool▁calls▁end｜>", fenced("now", {}) + "<｜tool▁calls▁end｜>"),
            "deepseek_v31": one.replace("<｜tool▁calls▁end｜>", unfenced("now", {}) + "<｜tool▁calls▁end｜>"),
            "deepseek_v32": one.replace(
                "</｜DSML｜function_calls>", dsml("now") + "</｜DSML｜function_calls>"
            ),
        }.get(kind, one + one)
        assert world.accepts(world.reading("required").constrain(None), two), kind
        assert not world.accepts(world.reading("required", parallel=False).constrain(None), two), kind


def test_escapes_of_json_in_a_pythonic_call() -> None:
    world = World("pythonic", tokens=True)
    text = r'[get_weather(city="\/ \ud83d\udc26 \u00e9", days=[])]'
    assert calls_of(world.reading("auto"), text)[1] == [("get_weather", {"city": "/ 🐦 é", "days": []})]


@pytest.mark.parametrize("begin", [Begins.INSIDE, Begins.PERHAPS])
@pytest.mark.parametrize("tools", [(), TOOLS[1:]], ids=["alone", "tools"])
def test_reasoning_is_cut_at_its_budget(begin: Begins, tools: tuple[Tool, ...]) -> None:
    world = World("hermes", tokens=True)
    marks = MARKS["think"]
    world.backend.add_special_tokens([marks.open, marks.close])
    world.tokenizer = LLTokenizer(world.backend.to_str(), n_vocab=world.backend.get_vocab_size(), eos_token=0)
    ids = {**world.formats.token_ids}
    for mark in (marks.open, marks.close):
        number = world.backend.token_to_id(mark)
        assert number is not None
        ids[mark] = number
    formats = Formats(world.format, marks, None, True, ids)
    prompt = marks.open if begin is Begins.INSIDE else ""
    opened = "" if begin is Begins.INSIDE else marks.open

    def constrained(num_tokens: int) -> Constraint:
        budget = Budget(num_tokens, "thinking.budget_tokens")
        reading = plan_reading(formats, ToolUse(tools=tools), prompt, "r", budget=budget)
        assert reading is not None
        constraint = reading.constrain(None)
        assert constraint is not None
        assert constraint.param == ("tools" if tools else budget.param)
        return constraint

    assert world.accepts(constrained(4), f"{opened}abcd{marks.close}South.")
    assert not world.accepts(constrained(3), f"{opened}abcd{marks.close}South.")
    assert world.accepts(constrained(3), f"{opened}{marks.close}\n\nSouth.")
    assert world.accepts(constrained(0), f"{opened}{marks.close}South.")
    assert not world.accepts(constrained(0), f"{opened}a{marks.close}South.")
    if begin is Begins.PERHAPS:
        assert world.accepts(constrained(3), "South."), "it need not reason at all"
    if tools:
        call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
        assert world.accepts(constrained(4), f"{opened}abcd{marks.close}{call}")


def test_a_budget_where_it_cannot_be_enforced_is_refused() -> None:
    world = World("hermes", tokens=False)
    formats = Formats(None, MARKS["think"], None, True, world.formats.token_ids)
    budget = Budget(10, "thinking_token_budget")
    with pytest.raises(Unsupported, match="thinking_token_budget: it cannot be enforced"):
        plan_reading(formats, ToolUse(), "<think>", "r", budget=budget)
    assert plan_reading(formats, ToolUse(), "<think></think>", "r", budget=budget) is None
    assert plan_reading(Formats(None, None, None, True, {}), ToolUse(), "", "r", budget=budget) is None
