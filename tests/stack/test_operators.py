"""What operators see of a server: https behind a proxy's prefix, metrics of all frontends, a JSON log."""

import json
import os
import re
import signal
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import DEADLINE_S, ROOT
from tests.stack.hold import Hold

if TYPE_CHECKING:
    from tests.conftest import Program

    Launch = Callable[..., Program]

HERE = Path(__file__).parent
SECRET = "the quick brown tern"
NUM_REQUESTS = 12


class Server:
    def __init__(self, program: "Program", run_dir: Path, hold: Hold) -> None:
        self.program = program
        self.hold = hold
        self.run_dir = run_dir
        self.url: str = json.loads(program.wait_for(r'\{[^\n]*"message":"ready"[^\n]*\}')[0])["url"]
        self._context = ssl.create_default_context(cafile=str(HERE / "localhost.pem"))
        with self.new_client() as client:
            program.wait_until(lambda: client.get("/health/ready").status_code == 200, "ready")

    def new_client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, verify=self._context, timeout=DEADLINE_S)

    def ask(self, request_id: str) -> httpx2.Response:
        """Over a connection of its own, so that any frontend may get it."""
        body = {"prompt": SECRET, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        with self.new_client() as client:
            return client.post("/llm/v1/completions", json=body, headers={"x-request-id": request_id})

    def samples(self) -> dict[str, float]:
        """name{label=value} → value, all from one scrape."""
        with self.new_client() as client:
            text = client.get("/metrics").text
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{k}={v}" for k, v in sample.labels.items() if k != "le")
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def log(self) -> list[dict[str, Any]]:
        """Every line that is complete."""
        return [json.loads(line) for line in self.program.output.split("\n")[:-1]]


@pytest.fixture(scope="module")
def server(
    launcher: "Callable[[Path], Launch]", tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("operators")
    flags = ["--port", "0", "--run-dir", str(folder / "run"), "--worker", "stub", "--frontends", "2"]
    flags += ["--ssl-certfile", str(HERE / "localhost.pem"), "--ssl-keyfile", str(HERE / "localhost.key")]
    flags += ["--root-path", "/llm", "--allowed-origins", "https://pages.example", "--crash-dir", ""]
    flags += ["--log-format", "json", "--log-requests", "--status-interval", "0.01"]
    hold = Hold(folder / "hold")
    faults = {"TERN_FAULTS": hold.environ}
    program = launcher(folder)("scripts.cli", "serve", str(tiny_checkpoint), *flags, **faults)
    server = Server(program, folder / "run", hold)
    yield server
    program.signal(signal.SIGTERM)
    assert program.wait() == 0, program.output
    assert all("time" in line and "process" in line for line in server.log())


def test_requests_are_answered_logged_by_id_and_counted_over_all_frontends(server: Server) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    for i in range(NUM_REQUESTS):
        answer = server.ask(f"ask-{i}")
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == f"ask-{i}"
    found = server.samples()
    assert found["tern_request_success_total{finished_reason=length}"] == NUM_REQUESTS
    assert found["tern_generation_tokens_total"] == 3 * NUM_REQUESTS
    assert found["tern_time_to_first_token_seconds_count"] == NUM_REQUESTS
    assert found["tern_request_queue_time_seconds_count"] == NUM_REQUESTS
    assert found["tern_request_queue_time_seconds_sum"] >= 0
    assert found["tern_request_prefill_time_seconds_count"] == NUM_REQUESTS
    assert found["tern_request_inference_time_seconds_count"] == NUM_REQUESTS
    assert found["tern_iteration_tokens_count"] == found["tern_engine_steps_total"]
    assert found["tern_iteration_tokens_sum"] > found["tern_generation_tokens_total"]
    assert found["tern_engine_up"] == 1
    server.program.wait_for(f"ask-{NUM_REQUESTS - 1}")
    lines = [
        line for line in server.log() if line.get("logger") == "tern.request" and "ask-" in line["request_id"]
    ]
    assert sorted(int(line["request_id"][4:]) for line in lines) == list(range(NUM_REQUESTS))
    assert {line["process"] for line in lines} <= {"frontend 0", "frontend 1"}
    for line in lines:
        assert (line["status"], line["completion_tokens"], line["finish_reason"]) == (200, 3, "length")
        assert line["seconds"] >= 0
    assert "quick brown" not in server.program.output


def test_a_busy_server_says_what_it_does(server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 3000, "ignore_eos": True}
    server.hold.after(1000)
    with server.new_client() as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, "/v1/completions", json=body)
        server.program.wait_for(r'"running":1\b[^\n]*\n')
        server.hold.release()
        assert answer.result().status_code == 200
    server.program.wait_for(r'"output_tokens_per_s":[1-9][^\n]*\n')
    [line, *_] = [line for line in server.log() if "output_tokens_per_s" in line and line["running"]]
    assert (line["running"], line["waiting"], line["process"]) == (1, 0, "supervisor")
    assert line["message"].startswith("1 running, 0 waiting · ")


def test_pages_of_the_allowed_origin_may_call(server: Server) -> None:
    ours, other = {"origin": "https://pages.example"}, {"origin": "https://other.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with server.new_client() as client:
        assert client.options("/v1/completions", headers=ours | asks).status_code == 200
        allowed = client.get("/v1/models", headers=ours)
        assert allowed.headers["access-control-allow-origin"] == "https://pages.example"
        missing = client.get("/nowhere", headers=ours)
        assert missing.headers["access-control-allow-origin"] == "https://pages.example"
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=other).headers
        assert client.options("/v1/completions", headers=other | asks).status_code == 400


def test_the_document_names_the_prefix(server: Server) -> None:
    with server.new_client() as client:
        assert client.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
        assert client.get("/llm").headers["location"] == "llm/", "its page's links are relative"
        assert client.get("/llm/").text == client.get("/").text


def test_restarts_and_resumed_streams_are_counted(server: Server) -> None:
    before = server.samples()
    assert before["tern_process_restarts_total{process=worker}"] == 0
    body = {"prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True, "temperature": 0}
    server.hold.after(100)
    with server.new_client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        pids = json.loads((server.run_dir / "pids.json").read_text())
        pid = pids["engine_core"][0]
        os.kill(pid, signal.SIGKILL)
        server.hold.release()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    after = server.samples()
    assert after["tern_process_restarts_total{process=engine_core}"] == 1
    assert after["tern_resumed_streams_total"] >= before["tern_resumed_streams_total"] + 1


def test_every_metric_of_the_dashboard_exists(server: Server) -> None:
    dashboard = (ROOT / "docs" / "grafana" / "tern.json").read_text()
    named = set(re.findall(r"\btern_\w+", dashboard))
    assert len(named) > 20
    assert named <= {name.partition("{")[0] for name in server.samples()}
    panels = json.loads(dashboard)["panels"]
    assert all(panel["type"] == "row" or panel["targets"][0]["expr"] for panel in panels)


def test_a_certificate_that_cannot_be_used_is_the_last_line(launch: "Launch", tiny_checkpoint: Path) -> None:
    flags = ["--port", "0", "--worker", "stub", "--ssl-certfile", __file__, "--ssl-keyfile", __file__]
    program = launch("scripts.cli", "serve", str(tiny_checkpoint), *flags)
    assert program.wait() == 78
    assert "cannot be used" in program.output.splitlines()[-1]
