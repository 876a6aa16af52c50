"""The README's commands, taken from it and run as written; only port and folder are the test's own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.conftest import ROOT, Program

if TYPE_CHECKING:
    from collections.abc import Callable

    Launcher = Callable[[Path], Callable[..., Program]]

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?:<!-- run: (?P<name>[\w-]+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", README, re.S)
DEADLINE_S = 120


def shell(marker: str) -> str:
    """The shell block that contains the marker."""
    [block] = [text for _, kind, text in BLOCKS if kind == "sh" and marker in text]
    return str(block)


def script(name: str) -> str:
    """The Python block with this name."""
    [block] = [text for found, kind, text in BLOCKS if kind == "python" and found == name]
    return str(block)


@dataclass
class Server:
    """What `./scripts/serve` started."""

    program: Program
    run_dir: Path
    port: str

    def run(self, command: list[str]) -> str:
        """Standard output of a command of the README that must succeed."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "TERN_ENDPOINT_FILE": str(self.run_dir / "endpoint"),
                "PYTHONPATH": str(ROOT),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The first command of the README, as written."""
    run_dir = tmp_path_factory.mktemp("readme") / "run"
    command = shell("./scripts/serve\n")
    environment = {
        **os.environ,
        "TERN_PORT": "0",
        "TERN_RUN_DIR": str(run_dir),
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONUNBUFFERED": "1",
    }
    program = Program(["bash", "-c", f"exec {command.strip()}"], environment)
    port = program.wait_for(r"API +http://127\.0\.0\.1:(\d+)/v1")[1]
    with httpx2.Client(timeout=DEADLINE_S) as client:
        url = f"http://127.0.0.1:{port}/health/ready"
        program.wait_until(lambda: client.get(url).status_code == 200, "ready")
    yield Server(program, run_dir, port)
    program.signal(signal.SIGINT)
    assert program.wait() == 130, program.output
    assert program.survivors() == []
    assert not run_dir.exists()
    program.close()


def chunks(output: str) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in output.splitlines() if line.startswith("data: {")]


def test_curl_streams_a_sensible_answer(server: Server) -> None:
    command = shell("curl -N").replace(":8000/", f":{server.port}/")
    output = server.run(["bash", "-c", command])
    assert output.rstrip().endswith("data: [DONE]")
    deltas = [choice["delta"] for chunk in chunks(output) for choice in chunk["choices"]]  # type: ignore[attr-defined]
    assert "".join(delta.get("content") or "" for delta in deltas) == "t-e-r-n"
    assert len(deltas) > 4, "it streams"


def test_offline_use_works_as_shown(server: Server) -> None:
    assert "Tern" in server.run([sys.executable, "-c", script("llm")]).splitlines()[-1]


def test_the_openai_client_works_as_shown(server: Server) -> None:
    code = script("openai").replace(":8000/", f":{server.port}/")
    assert "Tern" in server.run([sys.executable, "-c", code])


def test_the_engine_client_works_as_shown(server: Server) -> None:
    output = server.run([sys.executable, "-c", script("engine-client")])
    assert "EngineFacts" in output
    assert re.search(r"\] (LENGTH|STOP)\n$", output)


def test_tern_commands_work_as_shown(server: Server) -> None:
    assert "tern serve --help" in shell("tern serve --help")
    assert "--max-model-len" in server.run(["tern", "serve", "--help"])
    assert "tern chat" in shell("tern chat")
    chat = f"echo 'Who are you?' | tern chat --url http://127.0.0.1:{server.port}"
    assert "Tern" in server.run(["bash", "-c", chat]).split("\n", 1)[1]


def test_the_worker_is_killed_as_shown_and_the_server_serves_on(server: Server) -> None:
    before = json.loads((server.run_dir / "pids.json").read_text())["worker"]
    server.run(["bash", "-c", shell("kill -9").replace("RUN_DIR", str(server.run_dir))])
    server.program.wait_for("was killed by SIGKILL; starting it again")
    command = shell("curl -N").replace(":8000/", f":{server.port}/")
    assert "[DONE]" in server.run(["bash", "-c", command])
    assert json.loads((server.run_dir / "pids.json").read_text())["worker"] != before


def test_every_folder_is_on_the_map() -> None:
    for folder in ("protocol", "frontend", "engine_core", "worker", "scripts", "models", "tests", "docs"):
        assert re.search(rf"^\| \[?{folder}\b", README, re.M), folder
