"""Harmony: channels come out as text, reasoning and calls, however the text is cut."""

from random import Random

import pytest

from frontend.parts import ReasoningPart, TextPart, ToolCallArguments, ToolCallStart
from frontend.tool_formats.harmony import Harmony
from frontend.tools import Tool

THOUGHT = "<|channel|>analysis<|message|>Hm.\n\n1 < 2.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALL = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"a": "<|end|>"}<|call|>'


def read(text: str, *, show: bool = True, going_on: bool = False) -> tuple[str, str, str]:
    """(reasoning, text, calls): of the whole, of characters, and of random pieces, which is all the same."""
    rng = Random(text)
    cuts = [[text], list(text)]
    for _ in range(20):
        at = sorted(rng.randint(0, len(text)) for _ in range(4))
        cuts.append([text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])
    outcomes = set()
    for cut in cuts:
        reader = Harmony().whole_reader([Tool("look")], str, single=False, show=show, going_on=going_on)
        found = {"reasoning": "", "text": "", "calls": ""}
        for part in [part for piece in cut for part in reader.feed(piece)] + list(reader.finish()):
            match part:
                case ReasoningPart(text=more):
                    found["reasoning"] += more
                case TextPart(text=more):
                    found["text"] += more
                case ToolCallStart(name=name):
                    found["calls"] += f"{name}:"
                case ToolCallArguments(text=more):
                    found["calls"] += more
        outcomes.add(tuple(found.values()))
    assert len(outcomes) == 1, outcomes
    reasoning, said, calls = outcomes.pop()
    return reasoning, said, calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{THOUGHT}{FINAL}South.\n", ("Hm.\n\n1 < 2.", "South.\n", "")),
        (f"{THOUGHT}{THOUGHT}{FINAL}South.<|return|>", ("Hm.\n\n1 < 2.\nHm.\n\n1 < 2.", "South.", "")),
        (f"{THOUGHT}{CALL}", ("Hm.\n\n1 < 2.", "", 'look:{"a": "<|end|>"}')),
        (f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{CALL}",
         ("", "I look.", 'look:{"a": "<|end|>"}')),
        ("<|channel|>analysis<|message|>It never ends <|en", ("It never ends <|en", "", "")),
        (f"<|start|>assistant{FINAL}South.", ("", "South.", "")),
        ("assistant", ("", "assistant", "")),
        ("No frame at all.", ("", "No frame at all.", "")),
        ("", ("", "", "")),
    ],
)  # fmt: skip
def test_channels(text: str, expected: tuple[str, str, str]) -> None:
    assert read(text) == expected
    assert read(text, show=False) == ("", *expected[1:])


def test_a_text_that_goes_on() -> None:
    assert read("and <|channel|>final<|message|>so on", going_on=True) == ("", "and so on", "")


def test_what_is_reasoning_is_known_by_the_token() -> None:
    reader = Harmony().whole_reader([], str, single=False, show=True, going_on=False)
    seen = []
    for piece in ("<|channel|>", "analysis", "<|message|>", "Hm", "<|end|>", "<|start|>", "assistant"):
        reader.feed(piece)
        seen.append(reader.reasoning)
    assert seen == [False, False, True, True, False, False, False]
