"""`tern chat` against a small HTTP server that answers as the real one does."""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.errors import StartupError
from scripts import chat


class FakeServer(http.server.ThreadingHTTPServer):
    """Answers with the events that a test has prepared, and keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[list[str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.status != 200:
            self._send(self.server.status, b'{"error": {"message": "too long by 3"}}')
        else:
            self._send(200, "".join(f"data: {event}\n\n" for event in self.server.answers.pop(0)).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def delta(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


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
    assert "/resett is none of" in capsys.readouterr().out
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
    def interrupted(self: chat.ChatClient, model: str, messages: list[chat.Message]) -> Iterator[str]:
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.ChatClient, "answer", interrupted)
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
