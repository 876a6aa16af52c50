"""Lines of prompts, and of answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import StartupError
from scripts.api_client import Reply
from scripts.batch import Line, Output, answer_line, parse_line, read_lines

CHAT = "/v1/chat/completions"


def line(document: object, number: int = 1, **defaults: Any) -> Line:
    return parse_line(number, json.dumps(document).encode(), defaults)


def test_each_kind_of_line_is_a_question() -> None:
    plain = line("hello", number=7, max_tokens=3)
    assert plain.id == 7
    assert plain.question is not None
    assert plain.question.path == "/v1/completions"
    assert plain.question.body == {"prompt": "hello", "max_tokens": 3}
    own = line({"messages": [], "id": "a", "max_tokens": 9}, max_tokens=3)
    assert own.id == "a"
    assert own.question is not None
    assert (own.question.path, own.question.body) == (CHAT, {"messages": [], "max_tokens": 9})
    theirs = line({"custom_id": "c", "method": "POST", "url": CHAT, "body": {"messages": []}}, top_p=0.5)
    assert (theirs.id, theirs.is_openai) == ("c", True)
    assert theirs.question is not None
    assert theirs.question.body == {"messages": [], "top_p": 0.5}
    vector = line({"custom_id": "c", "url": "/v1/embeddings", "body": {"input": "x"}}, top_p=0.5)
    assert vector.question is not None
    assert vector.question.body == {"input": "x"}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (3, "expected a text or an object"),
        ({}, "expected either prompt or messages"),
        ({"prompt": "x", "messages": []}, "expected either prompt or messages"),
        ({"prompt": "x", "n": 2}, "n: a line has one answer"),
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "id": [1]}, "id"),
        ({"custom_id": "c"}, "both custom_id and body"),
        ({"custom_id": "c", "url": "/metrics", "body": {}}, "POST /metrics: expected POST and one of"),
        ({"custom_id": "c", "method": "GET", "url": CHAT, "body": {}}, "GET /v1/chat"),
    ],
)
def test_a_mistake_is_part_of_its_line(document: object, told: str) -> None:
    found = line(document, number=5)
    assert found.question is None
    assert "line 5: " in found.mistake
    assert told in found.mistake
    answer = json.loads(answer_line(found, None))
    assert answer["error"]["message"] == found.mistake
    assert answer.get("custom_id", answer["id"]) == found.id


def test_what_is_no_json_is_a_mistake_too() -> None:
    assert parse_line(2, b"{half", {}).mistake.startswith("line 2: JSON is malformed")
    assert parse_line(2, b'"\xff"', {}).question is None


def test_answers_have_the_form_of_their_questions() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    message = {"role": "assistant", "content": "hi", "refusal": None, "reasoning_content": "hm"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    reply = Reply(200, json.dumps(body).encode())
    simple = line({"messages": [], "id": "a"})
    assert json.loads(answer_line(simple, reply)) == {
        "id": "a", "request": simple.digest, "text": "hi", "reasoning_content": "hm",
        "finish_reason": "stop", "usage": usage,
    }  # fmt: skip
    theirs = line({"custom_id": "c", "url": CHAT, "body": {"messages": []}})
    assert json.loads(answer_line(theirs, reply)) == {
        "id": f"batch_req_{theirs.digest}", "custom_id": "c",
        "response": {"status_code": 200, "body": body}, "error": None,
    }  # fmt: skip
    refused = Reply(400, b'{"error": {"message": "no"}}')
    assert json.loads(answer_line(simple, refused))["error"] == {"message": "no"}
    told = json.loads(answer_line(theirs, refused))
    assert (told["error"], told["response"]["status_code"]) == ({"message": "no"}, 400)
    assert "500 and no JSON" in json.loads(answer_line(simple, Reply(500, b"<html>")))["error"]["message"]


def answered(path: Path, inputs: Path, count: int) -> None:
    reply = Reply(200, b'{"choices": [{"text": "x", "finish_reason": "stop"}], "usage": {}}')
    with path.open("wb") as file:
        for one, _ in zip(read_lines(str(inputs), {}), range(count), strict=False):
            file.write(answer_line(one, reply))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    inputs = tmp_path / "in"
    inputs.write_text('"a"\n\n"b"\n{"prompt": "c"}\n')
    return inputs, tmp_path / "out"


def test_an_output_goes_on_behind_its_last_whole_line(files: tuple[Path, Path]) -> None:
    inputs, path = files
    answered(path, inputs, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id":3,"requ')
    output, lines = Output(str(path), overwrite=False), read_lines(str(inputs), {})
    assert output.resume(lines) == (2, 0)
    assert path.read_bytes() == whole
    assert [one.id for one in lines] == [4]
    output.append(b"more\n")
    output.close()
    assert path.read_bytes() == whole + b"more\n"


def test_an_output_of_something_else_is_left_alone(files: tuple[Path, Path]) -> None:
    inputs, path = files
    answered(path, inputs, 3)
    before = path.read_bytes()
    other = inputs.with_name("other")
    for text, told in (('"a"\n"x"\n', "line 2 answers another"), ('"a"\n', "line 2 has more lines")):
        other.write_text(text)
        output = Output(str(path), overwrite=False)
        with pytest.raises(StartupError, match=told) as caught:
            output.resume(read_lines(str(other), {}))
        output.close()
        assert "--overwrite" in caught.value.hint
        assert path.read_bytes() == before
    output = Output(str(path), overwrite=False)
    with pytest.raises(StartupError, match="line 1 answers another question"):
        output.resume(read_lines(str(inputs), {"temperature": 0}))
    output.close()


def test_only_one_may_write(files: tuple[Path, Path]) -> None:
    output = Output(str(files[1]), overwrite=False)
    with pytest.raises(StartupError, match="another tern generate"):
        Output(str(files[1]), overwrite=False)
    output.close()
    answered(files[1], files[0], 1)
    output = Output(str(files[1]), overwrite=True)
    assert output.resume(read_lines(str(files[0]), {})) == (0, 0)
    output.close()


@pytest.mark.parametrize("body", [b'{"error": "model not found"}', b'"no"', b'{"error": ["a", "b"]}'])
def test_errors_of_any_shape_are_answers_to_go_on_behind(files: tuple[Path, Path], body: bytes) -> None:
    inputs, path = files
    first = next(read_lines(str(inputs), {}))
    path.write_bytes(answer_line(first, Reply(404, body)))
    output = Output(str(path), overwrite=False)
    assert output.resume(read_lines(str(inputs), {})) == (1, 1)
    output.close()
