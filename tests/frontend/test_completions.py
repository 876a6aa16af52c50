"""POST /v1/completions: forms of the prompt, echo, scoring, log-probabilities."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from frontend.service import GenerationDefaults, Service
from protocol import columns
from protocol.messages import Finish
from protocol.sampling import SamplingParams
from tests.frontend.conftest import BOS, END, asgi_client, attached, events, text_of
from tests.frontend.fake_engine import FakeEngine

Ids = Callable[[str], list[int]]


async def complete(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def prompts_of(engine: FakeEngine) -> list[list[int]]:
    return [list(columns.unpack_ids(submit.prompt_token_ids)) for submit in engine.submits]


async def test_a_whole_answer(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer, engine.finish = [*ids(" fly"), END], Finish.STOP
    body = await complete(http, prompt="Terns")
    assert body["choices"] == [{"index": 0, "text": " fly", "logprobs": None, "finish_reason": "stop"}]
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert prompts_of(engine) == [[BOS, *ids("Terns")]]
    assert engine.submits[0].sampling.max_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_times_n(live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, stream: bool) -> None:
    engine.answer = ids("!")
    request = {"prompt": ["a", "b"], "n": 2, "seed": 5, "echo": True, "stream": stream}
    if stream:
        async with live.stream("POST", "/v1/completions", json=request) as response:
            chunks = await events(response)
        texts = [text_of(chunks, index) for index in range(4)]
    else:
        texts = [choice["text"] for choice in (await complete(live, **request))["choices"]]
    assert texts == ["a!", "a!", "b!", "b!"]
    assert [submit.sampling.seed for submit in engine.submits] == [5, 6, 5, 6]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [([7, 8, 9], [[7, 8, 9]]), ([[7], [8, 9]], [[7], [8, 9]])],
    ids=["ids", "lists of ids"],
)
async def test_prompts_as_ids(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, prompt: list[Any], expected: list[list[int]]
) -> None:
    engine.answer = ids("x")
    body = await complete(http, prompt=prompt)
    assert prompts_of(engine) == expected
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))


async def test_special_tokens_only_when_wanted(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("x")
    await complete(http, prompt="Terns", add_special_tokens=False)
    assert prompts_of(engine) == [ids("Terns")]


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "a<|user|>b")])
async def test_special_tokens_in_the_answer(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, skip: bool, text: str
) -> None:
    engine.answer, engine.finish = [*ids("a"), *ids("<|user|>"), *ids("b"), END], Finish.STOP
    body = await complete(http, prompt="x", skip_special_tokens=skip)
    assert body["choices"][0]["text"] == text


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "ab")])
async def test_a_stop_token(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids, include: bool, text: str
) -> None:
    engine.answer, engine.finish = [*ids("a"), *ids("b")], Finish.STOP
    body = await complete(http, prompt="x", stop_token_ids=ids("b"), include_stop_str_in_output=include)
    assert body["choices"][0]["text"] == text
    assert body["usage"]["completion_tokens"] == 2


async def test_echo_with_log_probabilities(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids(" b")
    body = await complete(http, prompt="a 🐦", echo=True, logprobs=2, max_tokens=len(engine.answer))
    choice, prompt = body["choices"][0], prompts_of(engine)[0]
    assert choice["text"] == "a 🐦 b"
    columns_of = choice["logprobs"]
    tokens = [*prompt, *engine.answer]
    assert columns_of["token_logprobs"] == [None, *(pytest.approx(-token / 1000) for token in tokens[1:])]
    assert columns_of["top_logprobs"][0] is None
    assert all(2 >= len(top) >= 1 for top in columns_of["top_logprobs"][1:])
    assert len(columns_of["tokens"]) == len(columns_of["text_offset"]) == len(tokens)
    assert columns_of["text_offset"][-len(engine.answer)] == len("a 🐦")
    assert columns_of["text_offset"] == sorted(columns_of["text_offset"])
    sampling = engine.submits[0].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (2, 2)


async def test_echo_has_an_entry_for_the_token_that_ended_it(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    """lm-eval takes the last entry for the one token that it lets an answer have."""
    engine.answer, engine.finish = [END], Finish.STOP
    body = await complete(http, prompt=ids("a b"), echo=True, logprobs=1, max_tokens=1)
    choice = body["choices"][0]
    assert choice["text"] == "a b"
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids("a b")) + 1
    assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(-END / 1000)


async def test_scoring_a_prompt(http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids) -> None:
    engine.answer = ids("never seen")
    body = await complete(http, prompt=ids("a b"), echo=True, logprobs=0, max_tokens=0)
    choice = body["choices"][0]
    assert choice["text"] == "a b"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(ids("a b"))
    assert body["usage"]["completion_tokens"] == 0
    assert engine.submits[0].sampling.max_tokens == 1


async def test_log_probabilities_in_a_stream_with_echo(
    live: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids(" c d")
    request = {"prompt": "a b", "echo": True, "logprobs": 1, "stream": True}
    async with live.stream("POST", "/v1/completions", json=request) as response:
        chunks = await events(response)
    assert text_of(chunks) == "a b c d"
    logprobs = [c["choices"][0]["logprobs"] for c in chunks]
    offsets = [offset for one in logprobs if one for offset in one["text_offset"]]
    assert len(offsets) == len(prompts_of(engine)[0]) + len(engine.answer)
    assert offsets == sorted(offsets)


async def test_stops_wait_for_the_least_number_of_tokens(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = [*ids("a"), *ids("b"), *ids("a"), *ids("c")]
    body = await complete(http, prompt="x", stop=["a"], min_tokens=2)
    assert body["choices"][0]["text"] == "ab"


async def test_the_checkpoint_gives_defaults(
    make_service: Callable[..., Service], engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("x")
    defaults = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, repetition_penalty=1.1)
    async with asgi_client(await attached(make_service(defaults=defaults), engine)) as client:
        await complete(client, prompt="x", seed=1)
        await complete(client, prompt="x", seed=1, temperature=0, top_k=0, top_p=1)
    assert engine.submits[0].sampling == SamplingParams(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, repetition_penalty=1.1, seed=1
    )
    assert engine.submits[1].sampling == SamplingParams(
        temperature=0, top_p=1, top_k=0, min_p=0.01, repetition_penalty=1.1, seed=1
    )


async def test_the_answer_takes_what_room_is_left(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("x")
    await complete(http, prompt=[9] * 120)
    assert engine.submits[0].sampling.max_tokens == 8


async def test_scoring_a_prompt_without_its_echo(
    http: httpx2.AsyncClient, engine: FakeEngine, ids: Ids
) -> None:
    engine.answer = ids("never seen")
    body = await complete(http, prompt=ids("a b"), prompt_logprobs=0, max_tokens=0)
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
    assert [list(entry or {}) for entry in choice["prompt_logprobs"]] == [
        [],
        *([str(token)] for token in ids("a b")[1:]),
    ]
