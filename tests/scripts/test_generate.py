"""`tern generate` and `tern complete` against a server that answers with the prompt."""

import json
from pathlib import Path

import pytest

from protocol.errors import StartupError
from scripts import asking, complete, generate
from tests.scripts.fake_api import FakeServer, finish


def completed(text: str) -> str:
    return json.dumps({"choices": [{"text": text}]})


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "id": f"id {i}"}) + "\n" for i in range(40)))
    return path


def run(server: FakeServer, inputs: Path, *flags: str, **environ: str) -> tuple[int, list[dict[str, object]]]:
    output = inputs.with_name("out")
    argv = ["--input", str(inputs), "--output", str(output), "--url", server.url, *flags]
    code = generate.main(argv, environ)
    return code, [json.loads(line) for line in output.read_text().splitlines()]


def test_every_line_is_answered_once_and_in_order(server: FakeServer, inputs: Path) -> None:
    code, answers = run(server, inputs, "--max-tokens", "5", TERN_GENERATE_CONCURRENCY="3", TERN_API_KEY="k")
    assert code == 0
    assert [(one["id"], one["text"]) for one in answers] == [(f"id {i}", f"{i}!") for i in range(40)]
    assert sorted(int(request["prompt"]) for request in server.requests) == list(range(40))
    assert server.requests[0]["model"] == "tiny"
    assert server.requests[0]["max_tokens"] == 5
    assert server.keys[0] == "Bearer k"


def test_what_a_busy_or_restarting_server_says_is_asked_again(
    server: FakeServer, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_PAUSE_S", 0.0)
    server.statuses = [503, 0, 200, 429, 0, 0]
    code, answers = run(server, inputs, "--concurrency", "1")
    assert code == 0
    assert len(answers) == 40
    assert len(server.requests) == 45


def test_errors_stand_in_their_lines(server: FakeServer, inputs: Path) -> None:
    inputs.write_text('"a"\nnope\n"b"\n')
    server.statuses = [200, 400]
    code, answers = run(server, inputs, "--concurrency", "1")
    assert code == 1
    assert [sorted(answer.keys() & {"text", "error"}) for answer in answers] == [
        ["text"],
        ["error"],
        ["error"],
    ]
    assert answers[2]["error"] == {"message": "too long by 3"}
    code, again = run(server, inputs)
    assert (code, again) == (1, answers), "nothing is asked twice"


def test_a_server_that_stays_away_ends_it_and_what_is_there_is_kept(
    server: FakeServer, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(generate, "PATIENCE_S", 0.0)
    server.statuses = [200] * 7 + [0] * 1000
    with pytest.raises(StartupError, match="no server has answered") as caught:
        run(server, inputs, "--concurrency", "1")
    assert "run the same command" in caught.value.hint
    assert len(inputs.with_name("out").read_text().splitlines()) == 7
    server.statuses.clear()
    code, answers = run(server, inputs, "--concurrency", "1")
    assert code == 0
    assert [one["id"] for one in answers] == [f"id {i}" for i in range(40)]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--output", "x"], "--input is missing"),
        (["--input", "x"], "--output is missing"),
        (["--input", "/nowhere", "--output", "x"], "--input /nowhere: No such file"),
        (["--input", "/dev/null", "--output", "/nowhere/x"], "--output /nowhere/x: No such file"),
        (["--input", "/dev/null", "--output", "/dev/null", "--url", "x", "--dtype", "float32"],
         "--dtype is for a server that is started"),
        (["--input", "x", "--output", "x", "--quantum"], "unknown flag --quantum"),
    ],
)  # fmt: skip
def test_mistakes(argv: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartupError, match=told):
        generate.main(argv, {})


def test_complete_prints_the_pieces(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [[completed(" upon"), completed(" a time"), "[DONE]"]]
    assert complete.main(["Once", "--url", server.url, "--echo", "--stop", ".", "!"], {}) == 0
    assert capsys.readouterr().out == "Once upon a time\n"
    [request] = server.requests
    assert request == {
        "model": "tiny",
        "prompt": "Once",
        "stream": True,
        "max_tokens": 256,
        "stop": [".", "!"],
    }
    server.answers = [[completed("all"), finish("length"), "[DONE]"]]
    assert complete.main(["x", "--url", server.url, "--max-tokens", "3"], {}) == 0
    assert "cut at its length: --max-tokens 3" in capsys.readouterr().err
    server.answers = [[completed("half")]]
    assert complete.main(["x", "--url", server.url], {}) == 1
    captured = capsys.readouterr()
    assert captured.out == "half"
    assert "before the answer was complete" in captured.err
