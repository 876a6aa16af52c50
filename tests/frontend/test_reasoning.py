"""Reasoning: split off however the text is cut; before calls and grammars; shown, hidden or left in."""

from collections.abc import Callable
from random import Random
from typing import Any

import httpx2
import msgspec
import pytest

from frontend.chat_template import ChatTemplate
from frontend.parts import ReasoningPart, TextPart
from frontend.reasoning import MARKS, Begins, PlainReader, ReasoningReader, begins, marks_of
from frontend.service import Service
from protocol import columns
from tests.frontend.conftest import Batches, MakeService, Says, asgi_client, attached, events
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
THINK = MARKS["think"]
URL = "/v1/chat/completions"
USER = [{"role": "user", "content": "Where?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "strict": True}}
CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
MAX_MODEL_LEN = 2048
CHAT_TEMPLATE = (
    "{{ tools }}{{ reasoning_effort }}{# <tool_call> #}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% elif open %}<think>\n{% endif %}{% endif %}"
)


def split(text: str, begin: Begins, *, show: bool = True) -> tuple[str, str]:
    """Reasoning and text: of the whole, of single characters, and of random pieces, which is all the same."""
    rng = Random(text)
    cuts = [[text], list(text)]
    for _ in range(20):
        at = sorted(rng.randint(0, len(text)) for _ in range(3))
        cuts.append([text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])
    outcomes = set()
    for cut in cuts:
        reader = ReasoningReader(THINK, begin, PlainReader(), show=show)
        parts = [part for piece in cut for part in reader.feed(piece)] + list(reader.finish())
        reasoning = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
        outcomes.add((reasoning, "".join(part.text for part in parts if isinstance(part, TextPart))))
    assert len(outcomes) == 1, outcomes
    return outcomes.pop()


@pytest.mark.parametrize(
    ("text", "begin", "expected"),
    [
        ("<think>\n1 < 2.\n\nYes.\n</think>\n\nSouth.\n", Begins.PERHAPS, ("1 < 2.\n\nYes.", "South.\n")),
        ("\n<think></think>South.", Begins.PERHAPS, ("", "South.")),
        ("South, <think>no</think>.", Begins.PERHAPS, ("", "South, <think>no</think>.")),
        ("<thin", Begins.PERHAPS, ("", "<thin")),
        (" <b>South</b>", Begins.PERHAPS, ("", " <b>South</b>")),
        ("Autumn.\n</think>\n\nSouth. </think>", Begins.INSIDE, ("Autumn.", "South. </think>")),
        ("It never ends </thi", Begins.INSIDE, ("It never ends </thi", "")),
        ("<think>so \n", Begins.PERHAPS, ("so", "")),
        ("", Begins.INSIDE, ("", "")),
    ],
)  # fmt: skip
def test_what_is_reasoning(text: str, begin: Begins, expected: tuple[str, str]) -> None:
    assert split(text, begin) == expected
    assert split(text, begin, show=False) == ("", expected[1])


def test_how_an_answer_begins_is_told_by_the_prompt() -> None:
    assert begins(THINK, "…<|assistant|>\n") is Begins.PERHAPS
    assert begins(THINK, "…<|assistant|><think>\n") is Begins.INSIDE
    assert begins(THINK, "…<think>\n\n</think>\n\n") is Begins.NEVER
    assert begins(THINK, "…", "<think>\nLet me") is Begins.INSIDE
    assert begins(THINK, "…<think>", "<think>x</think>It is") is Begins.NEVER
    assert begins(THINK, "…", "It is") is Begins.NEVER
    assert marks_of("{{ '</think>' }}") == THINK
    assert marks_of("{{ '[THINK][/THINK]' }}") == MARKS["mistral"]
    assert marks_of("{{ messages }}") is None


async def ask(http: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(URL, json={"messages": USER, "max_tokens": 300, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_the_answer_and_its_reasoning(http: httpx2.AsyncClient, says: Says) -> None:
    text = "<think>\nAutumn.\n</think>\n\nSouth."
    says(text)
    body = await ask(http)
    message = {"role": "assistant", "content": "South.", "refusal": None}
    assert body["choices"][0]["message"] == {**message, "reasoning_content": "Autumn."}
    reasoning = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < reasoning < body["usage"]["completion_tokens"]
    assert (await ask(http, include_reasoning=False))["choices"][0]["message"] == message
    apart = await ask(http, separate_reasoning=False)
    assert apart["choices"][0]["message"] == {**message, "content": text}
    assert "completion_tokens_details" not in apart["usage"]


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_stream(http: httpx2.AsyncClient, says: Says, batches: Batches, size: int) -> None:
    says(f"Autumn.\n</think>\n\nSouth.{CALL}")
    batches(size)
    request = {
        "messages": USER, "max_tokens": 300, "stream": True, "chat_template_kwargs": {"open": True},
        "tools": [{"type": "function", "function": {"name": "weather"}}], "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip
    async with http.stream("POST", URL, json=request) as response:
        chunks = await events(response)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice["delta"] for choice in choices]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Autumn."
    assert "".join(delta.get("content", "") for delta in deltas) == "South."
    assert [call["function"]["name"] for d in deltas for call in d.get("tool_calls", ()) if "id" in call] == [
        "weather"
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"
    tokens = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert b"".join(bytes(one["bytes"]) for one in tokens).decode() == f"Autumn.\n</think>\n\nSouth.{CALL}"


async def test_reasoning_that_never_closes(http: httpx2.AsyncClient, says: Says) -> None:
    says("Autumn, and")
    (choice,) = (await ask(http, chat_template_kwargs={"open": True}))["choices"]
    assert choice["message"]["reasoning_content"] == "Autumn, and"
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "stop"


async def test_reasoning_that_the_client_began(http: httpx2.AsyncClient, says: Says) -> None:
    says(" me see.</think>South.")
    begun = {"role": "assistant", "content": "<think>Let"}
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    (choice,) = (await ask(http, messages=[*USER, begun], **fields))["choices"]
    assert choice["message"]["reasoning_content"] == "me see."
    assert choice["message"]["content"] == "South."


async def test_effort_is_a_variable_of_the_template(
    http: httpx2.AsyncClient, service: Service, engine: FakeEngine, says: Says
) -> None:
    says("South.")
    prompts = []
    for fields in (
        {"reasoning_effort": "high"},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True, "open": True}},
    ):
        (choice,) = (await ask(http, **fields))["choices"]
        told = columns.unpack_ids(engine.submits[-1].prompt_token_ids)
        prompts.append(service.tokenizer.decode(told, skip_special_tokens=False))
        assert "South." in choice["message"].values()
    assert prompts[0] == "NonehighWhere?<|assistant|>"
    assert prompts[1].endswith("<think>\n\n</think>\n\n")
    assert prompts[2].endswith("<|assistant|><think>\n")
    refused = await http.post(URL, json={"messages": USER, "reasoning_effort": "a lot"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "reasoning_effort"


async def test_grammars_begin_behind_the_reasoning(
    http: httpx2.AsyncClient, engine: FakeEngine, says: Says
) -> None:
    says("South.")
    schema = {"type": "json_object"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"response_format": schema, "chat_template_kwargs": {"open": True}}, "start: thought GAP? @answer"),
        ({"response_format": schema}, 'start: ("<think>" thought)? GAP? @answer'),
        ({"tools": [WEATHER], "tool_choice": "required"}, 'start: ("<think>" thought)? GAP? calls'),
    ]
    for fields, lead in cases:
        await ask(http, **fields)
        frame = msgspec.json.decode(engine.submits[-1].grammar)["grammars"][0]["lark_grammar"]
        assert frame.split("\n")[0] == lead
    await ask(http, response_format=schema, reasoning_effort="none")
    assert "thought" not in engine.submits[-1].grammar


async def test_no_parser_no_reasoning(make_service: MakeService, engine: FakeEngine, says: Says) -> None:
    says("<think>Autumn.</think>South.")
    service = make_service(template=ChatTemplate(CHAT_TEMPLATE, {}), reasoning_parser="none")
    async with asgi_client(await attached(service, engine)) as client:
        (choice,) = (await ask(client))["choices"]
    assert choice["message"]["content"] == "<think>Autumn.</think>South."
