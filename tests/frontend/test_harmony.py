"""A model that writes in channels, through every API: its text, its reasoning and its calls come apart."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.frontend.conftest import Batches, Says, events
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
CHAT = "/v1/chat/completions"
MAX_MODEL_LEN = 2048
CHAT_TEMPLATE = (
    "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}{# to=functions. <|channel|> #}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THOUGHT = "<|channel|>analysis<|message|>Which city?<|end|><|start|>assistant"
TEXT = f"{THOUGHT}<|channel|>final<|message|>South."
CALL = f'{THOUGHT}<|channel|>commentary to=functions.look <|constrain|>json<|message|>{{"a": 1}}'
USER = [{"role": "user", "content": "Where?"}]
LOOK = {"type": "function", "function": {"name": "look", "strict": True}}


async def ask(http: httpx2.AsyncClient, **fields: Any) -> Any:
    response = await http.post(CHAT, json={"messages": USER, "max_tokens": 300, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


async def test_text_and_reasoning(http: httpx2.AsyncClient, says: Says) -> None:
    says(TEXT)
    message = await ask(http)
    assert (message["content"], message["reasoning_content"]) == ("South.", "Which city?")
    assert "reasoning_content" not in await ask(http, include_reasoning=False)
    refused = await http.post(CHAT, json={"messages": USER, "separate_reasoning": False})
    assert refused.json()["error"]["param"] == "separate_reasoning"


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_stream(http: httpx2.AsyncClient, says: Says, batches: Batches, size: int) -> None:
    says(CALL)
    batches(size)
    request = {"messages": USER, "max_tokens": 300, "stream": True, "tools": [LOOK]}
    async with http.stream("POST", CHAT, json=request) as response:
        deltas = [choice["delta"] for chunk in await events(response) for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Which city?"
    assert "".join(delta.get("content") or "" for delta in deltas) == ""
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"a": 1}'


async def test_the_other_apis(http: httpx2.AsyncClient, says: Says) -> None:
    says(CALL)
    tools = [{"type": "function", "name": "look"}]
    output = (await http.post("/v1/responses", json={"input": "x", "tools": tools})).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    says(TEXT)
    request = {"model": "tiny", "max_tokens": 300, "messages": USER}
    content = (await http.post("/v1/messages", json=request)).json()["content"]
    assert [block["type"] for block in content] == ["thinking", "text"]


async def test_grammars_begin_behind_the_reasoning(
    http: httpx2.AsyncClient, engine: FakeEngine, says: Says
) -> None:
    says(TEXT)
    await ask(http, response_format={"type": "json_object"})
    assert "analysis" in engine.submits[-1].grammar
    assert "final" in engine.submits[-1].grammar
    await ask(http, tools=[LOOK], tool_choice="required")
    assert "commentary to=functions." in engine.submits[-1].grammar
    await ask(http, messages=[*USER, {"role": "assistant", "content": "So"}], continue_final_message=True,
              response_format={"type": "json_object"})  # fmt: skip
    assert "final" not in engine.submits[-1].grammar, "it goes on within the text"
