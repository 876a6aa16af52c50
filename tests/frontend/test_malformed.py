"""Malformed bodies: always a 4xx error object that names the parameter, and nothing reaches the engine core.

What is wrong with a value's meaning rather than its form is in test_bad_input.py.
"""

from typing import Any

import httpx2
import pytest

from tests.frontend.fake_engine import FakeEngine

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}]},
    TEXT: {"prompt": "x"},
    VECTORS: {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
}
GENERATING: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"model": ["tiny"]}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": [], "stream": True}, "stream_options"),
    ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
    ({"n": "1"}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"n": 1 << 70}, "n"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1 << 40}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"temperature": None, "top_p": "0.5"}, "top_p"),
    ({"temperature": [1]}, "temperature"),
    ({"top_k": 0.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"presence_penalty": "1"}, "presence_penalty"),
    ({"frequency_penalty": {}}, "frequency_penalty"),
    ({"repetition_penalty": -1}, "repetition_penalty"),
    ({"seed": 0.5}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop": ["a", None]}, "stop[1]"),
    ({"stop": [["a"]]}, "stop[0]"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"stop_token_ids": ["5"]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
    ({"include_stop_str_in_output": "no"}, "include_stop_str_in_output"),
    ({"ignore_eos": 0}, "ignore_eos"),
    ({"skip_special_tokens": "x"}, "skip_special_tokens"),
    ({"logit_bias": [1, 2]}, "logit_bias"),
    ({"logit_bias": {"5": "1"}}, "logit_bias"),
    ({"logit_bias": {"-5": 1}}, "logit_bias"),
    ({"allowed_token_ids": 5}, "allowed_token_ids"),
    ({"allowed_token_ids": [None]}, "allowed_token_ids[0]"),
    ({"bad_words": ["a", 5]}, "bad_words[1]"),
    ({"prompt_logprobs": "1"}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 1.0e300}, "truncate_prompt_tokens"),
    ({"priority": 1 << 31}, "priority"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"cache_salt": "s" * 257}, "cache_salt"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ({"structured_outputs": {"regx": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"guided_choice": ["a", 5]}, "guided_choice[1]"),
    ({"guided_regex": "("}, "guided_regex"),
]
BODIES: dict[str, list[tuple[dict[str, Any], str]]] = {
    CHAT: [
        *GENERATING,
        ({"messages": {}}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"max_completion_tokens": "1"}, "max_completion_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": True, "logprobs": True}, "top_logprobs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"add_generation_prompt": "yes"}, "add_generation_prompt"),
    ],
    TEXT: [
        *GENERATING,
        ({"prompt": 5}, "prompt"),
        ({"prompt": [None]}, "prompt[0]"),
        ({"prompt": [[1, "x"]]}, "prompt[0][1]"),
        ({"prompt": [[[1]]]}, "prompt[0][0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": "5"}, "logprobs"),
        ({"echo": "true"}, "echo"),
        ({"best_of": 17}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
    VECTORS: [
        ({"input": 5}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [["x"]]}, "input[0][0]"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "4"}, "dimensions"),
        ({"priority": 0.5}, "priority"),
        ({"truncate_prompt_tokens": "1"}, "truncate_prompt_tokens"),
    ],
    "/tokenize": [
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": None, "messages": "x"}, "messages"),
        ({"prompt": None, "messages": [{"content": "x"}]}, "messages[0].role"),
        ({"add_special_tokens": 1}, "add_special_tokens"),
        ({"return_token_strs": "x"}, "return_token_strs"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
    ],
    "/detokenize": [
        ({"tokens": "5"}, "tokens"),
        ({"tokens": [1.5]}, "tokens[0]"),
        ({"tokens": [[5]]}, "tokens[0]"),
        ({"tokens": [5, 1 << 40]}, "tokens[1]"),
        ({"model": False}, "model"),
    ],
}


def test_there_are_enough() -> None:
    assert len({str(body) for bodies in BODIES.values() for body in bodies}) >= 60


@pytest.mark.parametrize("path", BODIES)
async def test_the_parameter_is_named(http: httpx2.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.answer = [50]
    assert (await http.post(path, json=BASE[path])).status_code == 200
    engine.submits.clear()
    for fields, param in BODIES[path]:
        response = await http.post(path, json=BASE[path] | fields)
        assert response.status_code == 400, (fields, response.text)
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param, (fields, error)
        assert param.split("[")[0] in error["message"]
    assert not engine.submits
