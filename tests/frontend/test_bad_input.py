"""Bad input gets a clear error: its status, the name of the field, and never a 5xx. Nothing is ignored."""

import random
from typing import Any

import httpx2
import pytest

from frontend.openai.chat import ChatRequest
from frontend.openai.completions import CompletionRequest
from frontend.openai.refused import CHAT, COMPLETIONS
from frontend.service import Service
from tests.frontend.conftest import asgi_client
from tests.frontend.fake_engine import FakeEngine

CHAT_URL, TEXT_URL = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "x"}


async def refused(client: httpx2.AsyncClient, url: str, body: Any, status: int = 400) -> dict[str, Any]:
    """The error object, whose four keys must all be there."""
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = await client.post(url, **content)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


COMMON: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n", "got 0"),
    ({"n": 17}, "n", "got 17"),
    ({"n": "two"}, "n", "got str"),
    ({"max_tokens": -1}, "max_tokens", "got -1"),
    ({"max_tokens": 1.5}, "max_tokens", "float"),
    ({"temperature": -0.1}, "temperature", "got -0.1"),
    ({"temperature": "hot"}, "temperature", "got str"),
    ({"top_p": 0}, "top_p", "got 0"),
    ({"top_p": 1.1}, "top_p", "got 1.1"),
    ({"top_k": -2}, "top_k", "got -2"),
    ({"min_p": 2}, "min_p", "got 2"),
    ({"presence_penalty": 3}, "presence_penalty", "got 3"),
    ({"frequency_penalty": -3}, "frequency_penalty", "got -3"),
    ({"repetition_penalty": 0}, "repetition_penalty", "got 0"),
    ({"seed": 1 << 70}, "seed", ""),
    ({"stop": ""}, "stop", "length >= 1"),
    ({"stop": ["x"] * 17}, "stop", "length <= 16"),
    ({"stop": ["x" * 257]}, "stop[0]", "length <= 256"),
    ({"stop": [1]}, "stop[0]", "got int"),
    ({"stop_token_ids": [100_000]}, "stop_token_ids", "100000"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", ""),
    ({"logit_bias": {"x": 1}}, "logit_bias", "int"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "100"),
    ({"logit_bias": {"100000": 1}}, "logit_bias", "100000"),
    ({"min_tokens": 5, "max_tokens": 2}, "min_tokens", "5"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "str"),
    ({"priority": "high"}, "priority", "got str"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "length >= 1"),
    ({"allowed_token_ids": [5, 100_000]}, "allowed_token_ids", "100000"),
    (
        {"allowed_token_ids": [2, 7], "stop_token_ids": [7], "min_tokens": 1},
        "allowed_token_ids",
        "min_tokens",
    ),
    ({"allowed_token_ids": [5], "guided_regex": "x"}, "allowed_token_ids", "guided_regex"),
    ({"bad_words": ["x"], "guided_regex": "x"}, "bad_words", "guided_regex"),
    ({"bad_words": "x"}, "bad_words", "array"),
    ({"bad_words": ["x", ""]}, "bad_words[1]", "length >= 1"),
    ({"bad_words": ["x", "  "]}, "bad_words[1]", "0 tokens"),
    ({"bad_words": ["🐦" * 250]}, "bad_words[0]", "may have 1 … 64"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "got 21"),
    ({"logprob_token_ids": [5]}, "logprob_token_ids", "only allowed with logprobs"),
    ({"logprob_token_ids": [5] * 21}, "logprob_token_ids", "length <= 20"),
    ({"logprob_token_ids": [100_000]}, "logprob_token_ids", "100000"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream: true"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "no token"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "got -2"),
    ({"stream_interval": 0}, "stream_interval", "got 0"),
    ({"return_token_ids": 1}, "return_token_ids", "bool"),
]


@pytest.mark.parametrize("url", [CHAT_URL, TEXT_URL])
@pytest.mark.parametrize(("fields", "param", "words"), COMMON, ids=lambda value: str(value)[:40])
async def test_a_field_out_of_range(
    http: httpx2.AsyncClient, engine: FakeEngine, url: str, fields: dict[str, Any], param: str, words: str
) -> None:
    error = await refused(http, url, {"messages": [USER], "prompt": "x", **fields})
    assert error["param"] == param
    assert words in error["message"]
    assert param.split("[")[0] in error["message"]
    assert not engine.submits


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": None}, "messages", "array"),
        ({"messages": "hello"}, "messages", "got str"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        (
            {"messages": [USER, {"role": "robot", "content": "x"}]},
            "messages[1].role",
            "'robot' is not one of",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got int"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "'image_url' is not supported",
        ),
        ({"max_tokens": 0}, "max_tokens", "got 0"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "got 0"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "got 21"),
        ({"logprobs": 1}, "logprobs", "bool"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", ""),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "JSON object",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_chat_requests(
    http: httpx2.AsyncClient, fields: dict[str, Any], param: str, words: str
) -> None:
    error = await refused(http, CHAT_URL, {"messages": [USER], **fields})
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": [1, 100_000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": "a", "best_of": 0}, "best_of"),
        ({"prompt": "a", "best_of": 2, "n": 3}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": ["a"] * 200, "best_of": 6}, "prompt"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_completion_requests(http: httpx2.AsyncClient, fields: dict[str, Any], param: str) -> None:
    assert (await refused(http, TEXT_URL, fields))["param"] == param


@pytest.mark.parametrize("url", [CHAT_URL, TEXT_URL, "/v1/embeddings", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"messages": "\xff"}',
        b'{"prompt": "\xc0\x80", "messages": "\xff", "suffix": "\xff", "tools": "\xff"}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "prompt": "\\ud800"}',
        b'{"x": ' + b"[" * 100_000,
        b'{"temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "prompt": "x", "tokens": [1], "n": 1} x',
    ],
    ids=lambda body: str(body[:30]),
)
async def test_malformed_bodies(http: httpx2.AsyncClient, url: str, body: bytes) -> None:
    await refused(http, url, body)


async def test_a_prompt_longer_than_the_context(http: httpx2.AsyncClient) -> None:
    for num_tokens, fields in ((128, {}), (100, {"max_tokens": 29})):
        error = await refused(http, TEXT_URL, {"prompt": [9] * num_tokens, **fields})
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 128 tokens" in error["message"]
        assert str(num_tokens + fields.get("max_tokens", 0)) in error["message"]


@pytest.mark.parametrize("url", [CHAT_URL, TEXT_URL])
async def test_a_text_that_can_never_fit_is_not_tokenized(
    service: Service, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(service, "tokenizer", None)
    text = "x" * (128 * 16 + 1)
    async with asgi_client(service) as client:
        body = {"messages": [{"role": "user", "content": text}], "prompt": text}
        error = await refused(client, url, body)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 128 tokens" in error["message"]


async def test_more_messages_than_tokens_of_context_are_not_rendered(http: httpx2.AsyncClient) -> None:
    error = await refused(http, CHAT_URL, {"messages": [{"role": "user", "content": ""}] * 129})
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"


@pytest.mark.parametrize("url", [CHAT_URL, TEXT_URL])
async def test_an_unknown_model(http: httpx2.AsyncClient, url: str) -> None:
    error = await refused(http, url, {"model": "gpt-9", "messages": [USER], "prompt": "x"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "tiny, org/tiny" in error["message"]


async def test_a_model_without_a_chat_template(
    make_service: Any, engine: FakeEngine, http: httpx2.AsyncClient, service: Service
) -> None:
    service.template = None
    error = await refused(http, CHAT_URL, {"messages": [USER]})
    assert "--chat-template" in error["message"]


async def test_what_clients_send_for_no_reason_is_accepted(
    http: httpx2.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = [50]
    extras = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "reasoning_effort": "low",
        "verbosity": "low",
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "request_id": "r",
        "nobody_knows_this": [1, {"a": None}],
        "best_of": 1,
    }
    for url in (CHAT_URL, TEXT_URL):
        response = await http.post(url, json={"messages": [USER], "prompt": "x", **extras})
        assert response.status_code == 200, response.text


WEIRD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 63), 1 << 80, 0.0, -0.5, 1.5, 1e308, "", "x",
    "1", "\x00", "🐦" * 50, [], [None], [1], [[1]], [[[]]], ["x"], [""], {}, {"a": 1}, {"1": 1}, {"1": None},
    [{}], [{"role": "user"}], [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
    {"include_usage": True}, {"include_usage": 3}, {"type": "text"}, {"type": "json_object"},
]  # fmt: skip
FIELDS = sorted(
    {name for kind in (ChatRequest, CompletionRequest) for name in kind.__struct_fields__}
    | CHAT.keys()
    | COMPLETIONS.keys()
)


@pytest.mark.parametrize("url", [CHAT_URL, TEXT_URL, "/tokenize", "/detokenize"])
async def test_no_body_makes_the_server_fail(http: httpx2.AsyncClient, engine: FakeEngine, url: str) -> None:
    engine.answer = [50, 51]
    chance = random.Random(url)
    for _ in range(400):
        body: dict[str, Any] = {"messages": [USER], "prompt": "x", "tokens": [50]}
        if url == "/tokenize":
            del body[chance.choice(["messages", "prompt"])]
        for _ in range(chance.randint(1, 3)):
            body[chance.choice([*FIELDS, "tokens"])] = chance.choice(WEIRD)
        response = await http.post(url, json=body)
        assert response.status_code in (200, 400, 404), (body, response.text)
        assert response.status_code == 200 or response.json()["error"]["message"]
