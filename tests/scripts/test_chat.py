"""`tern chat` against a small HTTP server that answers as the real one does."""

import io
from collections.abc import Generator
from typing import Any

import pytest

from protocol.errors import StartupError
from scripts import chat
from scripts.api_client import ApiClient
from tests.scripts.fake_api import FakeServer, delta, finish


def talk(server: FakeServer, monkeypatch: pytest.MonkeyPatch, typed: str, *argv: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return chat.main(["--url", server.url, *argv], {"TERN_API_KEY": "secret,other"})


def test_an_answer_is_printed_and_remembered(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [[delta("ol"), delta("leh"), '{"choices": []}', "[DONE]"], [delta("bye"), "[DONE]"]]
    assert talk(server, monkeypatch, "hello\n\nthanks\n", "--max-tokens", "9", "--temperature", "0") == 0
    assert "olleh\nbye\n" in capsys.readouterr().out
    first, second = server.requests
    assert (first["model"], first["stream"], first["max_tokens"], first["temperature"]) == (
        "tiny",
        True,
        9,
        0,
    )
    assert [message["content"] for message in second["messages"]] == ["hello", "olleh", "thanks"]
    assert server.keys == ["Bearer secret"] * 2


def test_reset_and_system(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [[delta("x"), "[DONE]"] for _ in range(3)]
    typed = "one\n/reset\ntwo\n/system be brief\nthree\n/quit\nfour\n"
    assert talk(server, monkeypatch, typed, "--system", "be kind") == 0
    asked = [[message["content"] for message in request["messages"]] for request in server.requests]
    assert asked == [["be kind", "one"], ["be kind", "two"], ["be brief", "three"]]


def test_an_unknown_command_is_not_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(server, monkeypatch, "/resett\n")
    told = capsys.readouterr().out
    assert "/resett is none of" in told
    assert "/params" in told
    assert server.requests == []


def test_a_refused_question_is_told_and_forgotten(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 400
    talk(server, monkeypatch, "first\nsecond\n")
    assert "400: too long by 3" in capsys.readouterr().err
    assert [message["content"] for message in server.requests[1]["messages"]] == ["second"]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ('{"error": {"message": "it broke"}}', "it broke"),
        ('{"choices": []}', "before the answer was complete"),
    ],
)
def test_a_stream_that_cannot_go_on_is_told(
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: str,
    told: str,
) -> None:
    server.answers = [[delta("half"), end]]
    talk(server, monkeypatch, "q\n")
    captured = capsys.readouterr()
    assert "half" in captured.out
    assert told in captured.err


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: ApiClient, path: str, body: object) -> Generator[dict[str, Any], None, None]:
        yield {"choices": [{"delta": {"content": "so far"}}]}
        raise KeyboardInterrupt

    monkeypatch.setattr(ApiClient, "events", interrupted)
    assert talk(server, monkeypatch, "q\n") == 0
    assert "so far (stopped)" in capsys.readouterr().out


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as gone:
        url = gone.url
    with pytest.raises(StartupError, match=f"no server answers at {url}") as caught:
        chat.main(["--url", url], {})
    assert "tern serve" in caught.value.hint


def test_a_url_that_is_none() -> None:
    with pytest.raises(StartupError, match="expected http://host:port"):
        chat.main(["--url", "ftp://x"], {})


def test_params_are_sent_and_can_be_taken_away(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [[delta("x"), "[DONE]"] for _ in range(2)]
    typed = '/params stop=["a"] user=me nonsense\none\n/params temperature= stop=\ntwo\n'
    talk(server, monkeypatch, typed, "--temperature", "0.5")
    first, second = server.requests
    assert (first["stop"], first["user"], first["temperature"]) == (["a"], "me", 0.5)
    assert "stop" not in second
    assert "temperature" not in second
    told = capsys.readouterr().out
    assert "nonsense: expected NAME=VALUE" in told
    assert 'temperature=0.5 stop=["a"] user="me"' in told


def test_retry_asks_the_last_question_again(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [[delta(text), "[DONE]"] for text in ("a", "b", "c")]
    talk(server, monkeypatch, "/retry\none\ntwo\n/retry\n/history\n/clear\n/history\n")
    asked = [[message["content"] for message in request["messages"]] for request in server.requests]
    assert asked == [["one"], ["one", "a", "two"], ["one", "a", "two"]]
    told = capsys.readouterr().out
    assert "nothing has been asked yet" in told
    assert told.endswith("user: one\nassistant: a\nuser: two\nassistant: c\n")


def test_thoughts_are_shown_and_no_part_of_the_answer(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thought = '{"choices": [{"delta": {"reasoning_content": "hm "}}]}'
    server.answers = [[thought, delta("yes"), "[DONE]"], [delta("x"), "[DONE]"]]
    talk(server, monkeypatch, "one\ntwo\n")
    assert "hm yes\n" in capsys.readouterr().out
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "yes"}


def test_what_is_cut_or_empty_is_told(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [[delta("so"), finish("length"), "[DONE]"], [finish("stop"), "[DONE]"]]
    talk(server, monkeypatch, "one\ntwo\n", "--max-tokens", "1")
    told = capsys.readouterr().out
    assert "so\n(cut at its length: max_tokens=1;" in told
    assert told.endswith("(an empty answer)\n")


def test_a_terminal_shows_control_characters_and_does_not_obey_them(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "a\tb\x1b[2Jc\x07\u202ed\né✓👩\u200d🚀"
    server.answers = [[delta(answer), "[DONE]"]] * 2
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    talk(server, monkeypatch, "one\n")
    assert "a\tb\\x1b[2Jc\\x07\\u202ed\né✓👩\u200d🚀\n" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    talk(server, monkeypatch, "one\n")
    assert answer in capsys.readouterr().out, "a file gets what the model wrote"


def test_options_come_from_the_environment_too(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [[delta("x"), "[DONE]"]]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    environ = {"TERN_URL": server.url, "TERN_CHAT_SYSTEM": "be brief", "TERN_CHAT_TOP_P": "0.5"}
    environ |= {"TERN_MODEL": "/of/the/server", "TERN_COMPLETE_TOP_P": "0.1"}
    assert chat.main([], environ) == 0
    [request] = server.requests
    assert (request["model"], request["top_p"]) == ("tiny", 0.5)
    assert request["messages"][0]["content"] == "be brief"
