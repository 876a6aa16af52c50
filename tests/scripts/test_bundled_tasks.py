"""The bundled model's tasks: deterministic, honestly held out, and within what its tokenizer can say."""

import json
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from scripts.bundled_tasks import (
    TASKS,
    Sample,
    held_out_samples,
    is_held_out,
    training_samples,
)
from scripts.tasks.long_answers import RECITATIONS
from scripts.tasks.tool_calls import TOOLS

MODEL = Path(__file__).resolve().parents[2] / "models" / "tern-mini"
CLOSED = {"recite", "weekday", "month", "times_table"}  # too few phrasings for a hundred held-out prompts


def prompt(sample: Sample) -> str:
    return json.dumps(sample.messages)


@cache
def held_out() -> list[Sample]:
    return held_out_samples(100)


@cache
def trained() -> list[Sample]:
    return list(islice(training_samples(Random(7)), 20_000))


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@cache
def template() -> Template:
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    return ImmutableSandboxedEnvironment().from_string(config["chat_template"])


def render(messages: list[dict[str, str]], **extra: object) -> str:
    return template().render(messages=messages, bos_token="<|bos|>", **extra)


def test_the_same_seed_draws_the_same_samples() -> None:
    again = list(islice(training_samples(Random(7)), 500))
    assert again == trained()[:500]
    assert again != list(islice(training_samples(Random(8)), 500))
    assert held_out_samples(5) == held_out_samples(5)


def test_training_never_sees_a_held_out_prompt() -> None:
    kept = {prompt(sample) for sample in held_out()}
    assert kept.isdisjoint(prompt(sample) for sample in trained() if TASKS[sample.task].scored)
    assert all(is_held_out(sample) for sample in held_out())


def test_every_task_is_trained_and_every_scored_task_is_held_out() -> None:
    assert {sample.task for sample in trained()} == set(TASKS)
    counts = Counter(sample.task for sample in held_out())
    assert set(counts) == {name for name, task in TASKS.items() if task.scored}
    assert len({prompt(sample) for sample in held_out()}) == len(held_out())
    assert all(count == 100 or task in CLOSED for task, count in counts.items())
    assert all(count >= 5 for count in counts.values())


def test_a_prompt_has_one_right_answer() -> None:
    answers: dict[str, str] = {}
    for sample in [*trained(), *held_out()]:
        assert answers.setdefault(prompt(sample), sample.answer) == sample.answer


def test_conversations_are_well_formed() -> None:
    for sample in trained():
        roles = [message["role"] for message in sample.messages]
        assert roles[-1] in ("user", "tool")
        assert "system" not in roles[1:]
        assert sample.answer
        assert sample.answer == sample.answer.strip()


@pytest.mark.parametrize("task", ["extract_person", "extract_order"])
def test_extraction_answers_are_json(task: str) -> None:
    for sample in trained():
        if sample.task == task:
            fields = json.loads(sample.answer)
            assert all(str(value) in sample.messages[-1]["content"] for value in fields.values())


def test_a_tool_call_names_an_offered_tool() -> None:
    for sample in trained():
        if sample.task == "tool_call":
            call = json.loads(sample.answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert call["name"] in TOOLS
            assert call["name"] in sample.messages[0]["content"]
            assert len(call["arguments"]) == 1


def test_the_template_writes_tools_as_the_model_was_taught() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in TOOLS[:2]]
    line = "Tools: get_weather, get_time"
    asked = [{"role": "user", "content": "Weather in Oslo?"}]
    taught = render([{"role": "system", "content": line}, *asked], add_generation_prompt=True)
    assert render(asked, tools=tools, add_generation_prompt=True) == taught
    brief = [{"role": "system", "content": "Be concise."}, *asked]
    taught = render([{"role": "system", "content": f"Be concise.\n{line}"}, *asked])
    assert render(brief, tools=tools) == taught


def test_every_text_survives_the_tokenizer() -> None:
    texts = {sample.answer for sample in [*trained(), *held_out()]} | set(RECITATIONS.values())
    texts |= {
        "",
        " ",
        "\n\t ",
        "Zoë — naïve café",
        "日本語 🙂‍↔️ \u200d",
        "a\x00b",
        "  two  spaces\r\n",
        "<|en d|>",
    }
    for text in texts:
        assert tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False) == text


def test_letters_digits_and_names_are_cut_as_the_tasks_need() -> None:
    assert tokenizer().encode('"tern"').tokens == list('"tern"')
    assert tokenizer().encode("2048").tokens == list("2048")
    assert tokenizer().encode(" Dehul").ids[1:] == tokenizer().encode('"Dehul').ids[1:]
    assert tokenizer().encode("<tool_call>{").tokens[0] == "<tool_call>"


def test_samples_fit_the_model() -> None:
    texts = [render(sample.messages) + sample.answer for sample in trained()[:4000]]
    longest = max(len(encoding.ids) for encoding in tokenizer().encode_batch(texts))
    config = json.loads((MODEL / "config.json").read_text())
    assert longest < 256 < config["max_position_embeddings"]
    assert tokenizer().get_vocab_size() == config["vocab_size"]
    assert (MODEL / "model.safetensors").stat().st_size <= 16 * 2**20
