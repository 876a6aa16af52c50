"""The commands of the README and of docs/quickstart.md, taken from them and run as written; only port and
folder are the test's own."""

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
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
BLOCK = re.compile(r"(?:<!-- run: (?P<name>[\w-]+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)
DEADLINE_S = 120


def shell(marker: str, page: str = README) -> str:
    """The shell block that contains the marker."""
    [block] = [text for _, kind, text in BLOCK.findall(page) if kind == "sh" and marker in text]
    return str(block)


def script(name: str) -> str:
    """The Python block with this name."""
    [block] = [text for found, kind, text in BLOCK.findall(README) if kind == "python" and found == name]
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
    # How many tokens an event holds is the scheduling's affair: only the first and last surely hold none.
    assert (deltas[0], deltas[-1]) == ({"role": "assistant", "content": ""}, {})


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


# ── docs/quickstart.md ──────────────────────────────────────────────────────────────────────────


def test_the_quickstart_begins_and_kills_as_the_readme_does() -> None:
    for marker in ("./scripts/serve\n", "kill -9"):
        assert shell(marker, QUICKSTART) == shell(marker)


def test_the_first_question_of_the_quickstart_is_answered(server: Server) -> None:
    command = shell("curl", QUICKSTART).replace(":8000/", f":{server.port}/")
    answer = json.loads(server.run(["bash", "-c", command]))
    assert "Tern" in answer["choices"][0]["message"]["content"]
    with httpx2.Client(timeout=DEADLINE_S) as client:
        for page in ("", "/live"):
            assert f"http://127.0.0.1:8000{page})" in QUICKSTART
            assert client.get(f"http://127.0.0.1:{server.port}{page}").status_code == 200


def test_the_doctor_looks_at_a_model_as_shown(server: Server) -> None:
    [command] = [line for line in shell("tern doctor", QUICKSTART).splitlines() if "doctor" in line]
    assert "tern-mini" in server.run(
        ["bash", "-c", command.replace("path/to/checkpoint", "models/tern-mini")]
    )


def test_every_option_of_the_quickstart_is_one(server: Server) -> None:
    options = set(re.findall(r"(?<=[\s`])--[a-z-]+", QUICKSTART))
    assert {"--max-model-len", "--ssl-keyfile", "--frontends", "--quantization"} <= options
    known = server.run(["tern", "serve", "--help"])
    assert [one for one in options if f"{one} " not in known and f"{one}," not in known] == []
