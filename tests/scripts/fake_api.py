"""FakeServer: a small HTTP server that answers as the real one does, with what a test has prepared."""

import http.server
import json
from typing import Any


class FakeServer(http.server.ThreadingHTTPServer):
    """Answers streams with the events that a test has prepared, and others with their prompt; keeps the
    requests. `statuses` are for the next requests, `status` for all after them; 0 cuts the connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[list[str]] = []
        self.statuses: list[int] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        status = self.server.statuses.pop(0) if self.server.statuses else self.server.status
        if status == 0:
            self.close_connection = True
        elif status != 200:
            self._send(status, b'{"error": {"message": "too long by 3"}}')
        elif request.get("stream"):
            self._send(200, "".join(f"data: {event}\n\n" for event in self.server.answers.pop(0)).encode())
        else:
            choice = {"text": f"{request['prompt']}!", "finish_reason": "stop"}
            document = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
            self._send(200, json.dumps(document).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def delta(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


def finish(reason: str) -> str:
    return json.dumps({"choices": [{"delta": {}, "text": "", "finish_reason": reason}]})
