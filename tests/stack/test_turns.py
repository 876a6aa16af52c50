"""/v1/responses and /v1/messages of real processes, with the real clients: kills are not noticed, and a
conversation is found again by whichever frontend is asked."""

import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from tests.conftest import ROOT
from tests.stack.conftest import Stack
from tests.stack.streams import nothing, once

if TYPE_CHECKING:
    import openai

    from tests.stack.conftest import Serve
    from tests.stack.streams import OnText

PAGE = (ROOT / "docs" / "responses-and-messages.md").read_text()
DEADLINE_S = 120
SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1200, "maxLength": 1200}
"""Without it the stub's answers would end by chance, and too soon."""


async def respond(client: "openai.AsyncOpenAI", on_text: "OnText" = nothing) -> str:
    """The text, as it was streamed."""
    stream = await client.responses.create(
        model="tiny",
        input="Tern",
        temperature=0,
        stream=True,
        text={"format": {"type": "json_schema", "name": "long", "schema": SCHEMA}},
    )
    text = ""
    async for event in stream:
        if event.type == "response.output_text.delta":
            text += event.delta
            on_text(len(text))
    assert event.type == "response.completed"
    assert event.response.output_text == text
    return text


async def say(client: anthropic.AsyncAnthropic, on_text: "OnText") -> str:
    """The same of the other API."""
    async with client.messages.stream(
        model="tiny",
        max_tokens=8000,
        extra_body={"temperature": 0},  # the library no longer names it
        messages=[{"role": "user", "content": "Tern"}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    ) as stream:
        length = 0
        async for text in stream.text_stream:
            length += len(text)
            on_text(length)
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"
    return "".join(block.text for block in message.content if block.type == "text")


async def test_kills_are_not_noticed_and_conversations_are_found(serve: "Serve") -> None:
    stack = serve("--frontends", "2")
    claude = anthropic.AsyncAnthropic(base_url=stack.base_url, api_key="none", max_retries=0, timeout=60)
    async with stack.async_client() as client, claude:
        expected = await respond(client)
        for kind in ("worker", "engine_core"):
            kill = partial(stack.kill, kind)
            assert await respond(client, once(kill)) == expected
            assert await say(claude, once(kill)) == expected

        short: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_output_tokens": 5}
        first = await client.responses.create(input="One", **short)
        conversation: Any = [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "Two"},
        ]
        told = await client.responses.create(input=conversation, **short)
        before = stack.pids["frontend"]
        stack.kill("frontend", 0)
        stack.kill("frontend", 1)
        stack.program.wait_until(lambda: not set(before) & set(stack.pids["frontend"]), "new frontends")
        stack.wait_ready()
    async with stack.async_client() as client:
        again = await client.responses.create(input="Two", previous_response_id=first.id, **short)
    assert again.output_text == told.output_text
    assert again.usage is not None
    assert told.usage is not None
    assert again.usage.input_tokens == told.usage.input_tokens


@pytest.mark.parametrize("name", ["responses", "messages"])
def test_the_examples_of_the_page(bundled: Stack, name: str) -> None:
    """With each real package: a call of the model's own accord, and with its result the answer."""
    [code] = re.findall(rf"<!-- run: {name} -->\n```python\n(.*?)```", PAGE, re.S)
    code = code.replace("http://127.0.0.1:8000", bundled.base_url).replace("tern-mini", bundled.model)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    called, answer = done.stdout.splitlines()
    assert called.startswith("get_weather")
    assert "Oslo" in called
    assert "21 degrees" in answer
