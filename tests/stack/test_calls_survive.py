"""Reasoning and a call, streamed by each API, while the worker and the engine core are killed in the middle
of either: the parts are those of an undisturbed run."""

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import pytest
from msgspec import Struct
from openai.types.chat import ChatCompletionFunctionToolParam
from tokenizers import Tokenizer

from tests.stack.conftest import SPECIAL, VOCAB_SIZE, Serve, Stack

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""One token each, so that the hash model closes its reasoning after some hundred tokens."""
TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}<tool_call>{{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}{# </think> #}"
)
LETTERS = 400
PARAMETERS: dict[str, object] = {
    "type": "object",
    "properties": {"text": {"type": "string", "pattern": f"^[a-z]{{{LETTERS}}}$"}},
    "required": ["text"],
    "additionalProperties": False,
}
QUESTION: Any = [{"role": "user", "content": "Write."}]


class Parts(Struct):
    """What a stream brought so far."""

    reasoning: str = ""
    name: str = ""
    arguments: str = ""


Hook = Callable[[Parts], None]
"""Hears of every event."""


@pytest.fixture(scope="session")
def reasoner(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, with a template of a model that reasons and calls."""
    folder = tmp_path_factory.mktemp("reasoner") / Stack.model
    shutil.copytree(tiny_checkpoint, folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    names = {number: name for name, number in document["model"]["vocab"].items()}
    taken = [names[number] for number in range(VOCAB_SIZE - len(MARKS), VOCAB_SIZE) if number in names]
    document["model"]["merges"] = document["model"]["merges"][: -len(taken)]
    for name in taken:
        del document["model"]["vocab"][name]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_special_tokens(MARKS)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "chat_template": TEMPLATE}))
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    assert set(SPECIAL) | set(MARKS) <= set(tokenizer.get_vocab())
    return folder


async def chat(stack: Stack, hook: Hook) -> Parts:
    parts = Parts()
    tool: ChatCompletionFunctionToolParam = {
        "type": "function",
        "function": {"name": "write", "parameters": PARAMETERS},
    }
    async with stack.async_client() as client:
        stream = await client.chat.completions.create(
            model=stack.model, messages=QUESTION, tools=[tool], tool_choice="required",
            parallel_tool_calls=False, temperature=0, stream=True,
        )  # fmt: skip
        async for chunk in stream:
            delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason
            parts.reasoning += (delta.model_extra or {}).get("reasoning_content", "")
            for call in delta.tool_calls or []:
                assert call.function is not None
                parts.name += call.function.name or ""
                parts.arguments += call.function.arguments or ""
            hook(parts)
    assert reason == "tool_calls"
    return parts


async def responses(stack: Stack, hook: Hook) -> Parts:
    parts = Parts()
    async with stack.async_client() as client:
        stream = await client.responses.create(
            model=stack.model, input="Write.", temperature=0, stream=True, parallel_tool_calls=False,
            tools=[{"type": "function", "name": "write", "parameters": PARAMETERS, "strict": False}],
            tool_choice="required",
        )  # fmt: skip
        async for event in stream:
            match event.type:
                case "response.reasoning_text.delta":
                    parts.reasoning += event.delta
                case "response.function_call_arguments.delta":
                    parts.arguments += event.delta
            hook(parts)
    assert event.type == "response.completed"
    thought, call = event.response.output
    assert thought.type == "reasoning"
    assert "".join(part.text for part in thought.content or []) == parts.reasoning
    assert call.type == "function_call"
    assert call.arguments == parts.arguments
    parts.name = call.name
    return parts


async def messages(stack: Stack, hook: Hook) -> Parts:
    parts = Parts()
    claude = anthropic.AsyncAnthropic(base_url=stack.base_url, api_key="none", max_retries=0, timeout=60)
    async with claude, claude.messages.stream(
        model=stack.model, max_tokens=8000, messages=QUESTION, extra_body={"temperature": 0},
        tools=[{"name": "write", "input_schema": PARAMETERS}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 4000},
    ) as stream:  # fmt: skip
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "thinking_delta":
                parts.reasoning += event.delta.thinking
            elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                parts.arguments += event.delta.partial_json
            hook(parts)
        message = await stream.get_final_message()
    assert message.stop_reason == "tool_use"
    thought, call = message.content
    assert thought.type == "thinking"
    assert thought.thinking == parts.reasoning
    assert call.type == "tool_use"
    assert call.input == json.loads(parts.arguments)
    parts.name = call.name
    return parts


class Strikes:
    """Kills one kind of process in the middle of the reasoning, and another in that of the call."""

    def __init__(self, stack: Stack, kinds: tuple[str, str], reasoning: str) -> None:
        self._stack = stack
        self._kinds = list(kinds)
        self._length = len(reasoning) // 3

    def __call__(self, parts: Parts) -> None:
        due = (len(parts.reasoning) > self._length) + (len(parts.arguments) > LETTERS // 8)
        if len(self._kinds) > 2 - due:
            self._stack.kill(self._kinds.pop(0))

    @property
    def done(self) -> bool:
        return not self._kinds


APIS: list[Callable[[Stack, Hook], Awaitable[Parts]]] = [chat, responses, messages]


async def test_kills_in_the_middle_of_reasoning_and_of_a_call(serve: Serve, reasoner: Path) -> None:
    stack = serve("--max-restarts", "20", checkpoint=reasoner)
    for ask in APIS:
        expected = await ask(stack, lambda parts: None)
        assert len(expected.reasoning) > 300
        assert expected.name == "write"
        assert len(json.loads(expected.arguments)["text"]) == LETTERS
        for kinds in (("worker", "engine_core"), ("engine_core", "worker")):
            strikes = Strikes(stack, kinds, expected.reasoning)
            assert await ask(stack, strikes) == expected, (ask, kinds)
            assert strikes.done, "all came before anybody was killed"
            stack.wait_ready()
