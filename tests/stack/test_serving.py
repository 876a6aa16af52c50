"""A server that nobody disturbs: the curl line, the openai package, several frontends, direct attach."""

import json
import re
import subprocess
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from protocol.client import EngineClient
from protocol.sampling import SamplingParams
from tests.faults.at_rest import Core

if TYPE_CHECKING:
    from tests.stack.conftest import Serve, Stack

QUESTION = [{"role": "user", "content": "Why do terns migrate?"}]
GREEDY = {"temperature": 0, "max_tokens": 40, "extra_body": {"ignore_eos": True}}


def test_the_banner_says_what_runs(server: "Stack") -> None:
    output = server.program.output
    assert re.search(r"Tern \S+ is ready in \d+\.\d s", output)
    assert re.search(r"model +tiny \(", output)
    assert re.search(r"KV cache +4,096 blocks of 32 tokens = 131,072 tokens", output)
    assert server.endpoint_file in output
    for kind, pids in server.pids.items():
        assert f"{kind} {' '.join(map(str, pids))}" in output


def test_the_curl_line_of_the_banner_streams_an_answer(server: "Stack") -> None:
    line = next(line for line in server.program.output.splitlines() if line.startswith("curl "))
    done = subprocess.run(
        ["bash", "-c", f"{line} -sS"], capture_output=True, text=True, timeout=60, check=True
    )
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert len(events) > 2
    assert json.loads(events[0])["object"] == "chat.completion.chunk"


def test_the_openai_package(server: "Stack") -> None:
    with server.client() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.chat.completions.create(model="tiny", messages=QUESTION, **GREEDY)  # type: ignore[call-overload]
        stream = client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **GREEDY)  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 40


async def test_the_openai_package_async(server: "Stack") -> None:
    async with server.async_client() as client:
        whole = await client.completions.create(model="tiny", prompt="One", **GREEDY)  # type: ignore[call-overload]
        stream = await client.completions.create(model="tiny", prompt="One", stream=True, **GREEDY)  # type: ignore[call-overload]
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == whole.choices[0].text


def test_an_unknown_model_is_refused_with_its_name(server: "Stack") -> None:
    with server.client() as client, pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])


async def test_a_stranger_attaches_to_the_engine_core(server: "Stack") -> None:
    client = await EngineClient.attach(server.endpoint_file)
    assert client.facts is not None
    assert client.facts.num_blocks == 4096
    stream = client.submit([5, 6, 7], SamplingParams(max_tokens=10, temperature=0, ignore_eos=True))
    tokens = [token async for batch in stream for token in batch.token_ids]
    again = client.submit([5, 6, 7], SamplingParams(max_tokens=10, temperature=0, ignore_eos=True))
    assert tokens == [token async for batch in again for token in batch.token_ids]
    assert len(tokens) == 10
    await client.close()


async def test_a_client_that_goes_away_frees_its_blocks(server: "Stack") -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}
    server.hold.after(100)
    async with (
        Core.of(server) as core,
        httpx2.AsyncClient(base_url=server.base_url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.aiter_lines()  # kept: without a reader, httpx2 closes the connection
        await anext(lines)
        assert (await core.stats()).num_running == 1
        before = (await core.stats()).generation_tokens
        await response.aclose()
        server.hold.release()
        assert (await core.at_rest()).generation_tokens < before + 800


def test_frontends_share_the_port(serve: "Serve") -> None:
    stack = serve("--frontends", "2")
    killed = stack.kill("frontend", 1)
    answers = [httpx2.get(f"{stack.base_url}/v1/models", timeout=60).status_code for _ in range(20)]
    assert answers == [200] * 20, "a connection to the dead one must wait for its successor"
    stack.program.wait_for("frontend 1 is ready again")
    assert killed not in stack.pids["frontend"]
    assert len(stack.pids["frontend"]) == 2


def test_an_api_key_is_asked_for(serve: "Serve") -> None:
    stack = serve(TERN_API_KEY="swordfish")
    assert "swordfish" not in stack.program.output
    assert httpx2.get(f"{stack.base_url}/v1/models", timeout=60).status_code == 401
    headers = {"Authorization": "Bearer swordfish"}
    assert httpx2.get(f"{stack.base_url}/v1/models", headers=headers, timeout=60).status_code == 200
