"""POST /v1/chat/completions, from HTTP to the engine core's socket and back."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from protocol import columns
from protocol.messages import Finish
from protocol.sampling import SamplingParams
from tests.frontend.conftest import END, events, text_of
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]
USER = [{"role": "user", "content": "Where do terns go?"}]
TEXT = "From pole to pole 🐦 and back."


async def complete(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"messages": USER, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def stream(client: httpx2.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    request = {"messages": USER, "stream": True, **fields}
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return await events(response)


async def test_a_whole_answer(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer, engine.finish, engine.num_cached = [*ids(TEXT), END], Finish.STOP, 3
    body = await complete(http, model="org/tiny")
    prompt = ids("<|bos|><|user|>Where do terns go?<|end|><|assistant|>")
    assert list(columns.unpack_ids(engine.submits[0].prompt_token_ids)) == prompt
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    answer = len(engine.answer)
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": answer,
        "total_tokens": len(prompt) + answer,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "org/tiny"
    assert isinstance(body["created"], int)


@pytest.mark.parametrize("tokens_per_message", [1, 3])
async def test_a_stream(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, tokens_per_message: int
) -> None:
    engine.answer, engine.finish, engine.tokens_per_message = (
        [*ids(TEXT), END],
        Finish.STOP,
        tokens_per_message,
    )
    chunks = await stream(live)
    assert text_of(chunks) == TEXT
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_at_the_end_of_a_stream(live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids(TEXT)
    chunks = await stream(live, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(engine.answer)
    assert not any("usage" in chunk for chunk in chunks[:-1])


async def test_usage_in_every_event(live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("one two three")
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c["usage"]["completion_tokens"] for c in await stream(live, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == len(engine.answer)


async def test_several_choices_stream_side_by_side(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids(TEXT)
    chunks = await stream(live, n=3, seed=40, stream_options={"include_usage": True})
    assert [text_of(chunks, index) for index in range(3)] == [TEXT] * 3
    assert sorted(submit.sampling.seed for submit in engine.submits) == [40, 41, 42]
    finished = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"] == "length"]
    assert sorted(finished) == [0, 1, 2]
    assert chunks[-1]["usage"]["completion_tokens"] == 3 * len(engine.answer)
    assert chunks[-1]["usage"]["prompt_tokens"] == len(engine.submits[0].prompt_token_ids) // 4


async def test_a_request_without_a_seed_draws_one(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("x")
    await complete(http)
    await complete(http)
    assert engine.submits[0].sampling.seed != engine.submits[1].sampling.seed


async def test_every_parameter_reaches_the_engine_core(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("x y")
    await complete(
        http,
        max_tokens=1,
        max_completion_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        seed=-1,
        stop_token_ids=[5],
        ignore_eos=True,
        logit_bias={"7": -100},
        logprobs=True,
        top_logprobs=4,
        priority=-2,
        cache_salt="pepper",
    )
    submit = engine.submits[0]
    assert submit.sampling == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        seed=(1 << 63) - 1,
        stop_token_ids=(5,),
        ignore_eos=True,
        logit_bias=((7, -100.0),),
        logprobs=4,
    )
    assert (submit.priority, submit.cache_salt) == (-2, "pepper")


async def test_null_means_omitted(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("x")
    names = [
        "model",
        "stream",
        "stream_options",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "presence_penalty",
        "frequency_penalty",
        "user",
        "tools",
        "tool_choice",
        "response_format",
        "add_generation_prompt",
        "chat_template_kwargs",
        "priority",
        "cache_salt",
    ]
    await complete(http, **dict.fromkeys(names))
    room = 128 - len(engine.submits[0].prompt_token_ids) // 4
    seed = engine.submits[0].sampling.seed
    assert engine.submits[0].sampling == SamplingParams(max_tokens=room, seed=seed)


async def test_log_probabilities(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer, engine.finish = [*ids("café 🐦"), END], Finish.STOP
    body = await complete(http, logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == len(engine.answer) - 1  # the end is not part of the text
    spelled = b"".join(bytes(token["bytes"]) for token in content)
    assert spelled.decode() == "café 🐦" == body["choices"][0]["message"]["content"]
    first = engine.answer[0]
    assert content[0]["logprob"] == pytest.approx(-first / 1000)
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == pytest.approx(
        [-first / 1000, -(first + 1) / 1000]
    )


async def test_log_probabilities_without_alternatives(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("x")
    body = await complete(http, logprobs=True)
    assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_log_probabilities_in_a_stream(live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("From pole 🐦 STOP it")
    chunks = await stream(live, logprobs=True, stop=["STOP"])
    pieces = [c["choices"][0] for c in chunks if c["choices"][0]["logprobs"]]
    spelled = b"".join(bytes(t["bytes"]) for piece in pieces for t in piece["logprobs"]["content"])
    assert spelled.decode() == text_of(chunks) == "From pole 🐦 "


async def test_a_stop_string_ends_the_request(live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    used = ids("one two three")
    engine.answer, engine.pause_at = used + ids(" four"), len(used)
    chunks = await stream(live, stop=[" three", "zzz"], stream_options={"include_usage": True})
    assert text_of(chunks) == "one two"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    await engine.until(lambda: engine.aborted == {engine.submits[0].request_id})
    assert chunks[-1]["usage"]["completion_tokens"] == len(used)


async def test_a_stop_string_in_the_output(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("one two three")
    body = await complete(http, stop="two", include_stop_str_in_output=True)
    assert body["choices"][0]["message"]["content"] == "one two"
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_text_parts_of_a_message(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("x")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await complete(http, messages=[{"role": "developer", "content": "d"}, {"role": "user", "content": parts}])
    prompt = ids("<|bos|><|system|>d<|end|><|user|>one\ntwo<|end|><|assistant|>")
    assert list(columns.unpack_ids(engine.submits[0].prompt_token_ids)) == prompt


async def test_going_on_with_the_last_message(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("x")
    messages = [*USER, {"role": "assistant", "content": "From the "}]
    await complete(http, messages=messages, continue_final_message=True, add_generation_prompt=False)
    prompt = ids("<|bos|><|user|>Where do terns go?<|end|><|assistant|>From the ")
    assert list(columns.unpack_ids(engine.submits[0].prompt_token_ids)) == prompt
