"""How a server ends, and how it does not start."""

import json
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

if TYPE_CHECKING:
    from tests.conftest import Launch
    from tests.stack.conftest import Serve


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_everything(serve: "Serve", number: signal.Signals, exit_code: int) -> None:
    stack = serve()
    assert stack.ends(number) == exit_code
    assert f"{number.name}: stopping" in stack.program.output
    assert stack.program.output.splitlines()[-1].endswith("stopped; nothing is left running")


def test_an_open_stream_gets_its_time_to_finish(serve: "Serve") -> None:
    stack = serve("--shutdown-timeout", "60")
    body = {"model": "tiny", "prompt": "x", "max_tokens": 3000, "stream": True, "ignore_eos": True}
    with (
        httpx2.Client(base_url=stack.base_url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        stack.program.signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert stack.gone() == 0


def test_a_stream_that_does_not_finish_in_time_is_told(serve: "Serve") -> None:
    stack = serve("--shutdown-timeout", "0.2")
    body = {"model": "tiny", "prompt": "x", "max_tokens": 16000, "stream": True, "ignore_eos": True}
    with (
        httpx2.Client(base_url=stack.base_url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        parts = response.iter_bytes()
        next(parts)
        stack.program.signal(signal.SIGTERM)
        received = bytearray()
        with suppress(httpx2.RemoteProtocolError):  # not a clean end, on purpose
            for part in parts:
                received += part
    last = received.strip().rpartition(b"data: ")[2]
    assert "the server is stopping" in json.loads(last)["error"]["message"]
    assert stack.gone() == 0


def test_nothing_outlives_the_supervisor(serve: "Serve") -> None:
    stack = serve("--frontends", "2")
    port = int(stack.base_url.rpartition(":")[2])
    stack.kill("supervisor")
    stack.program.wait_until_gone()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


LOADING = "worker: importing torch"


def test_nothing_outlives_a_supervisor_that_is_killed_while_starting(
    launch: "Launch", tiny_checkpoint: Path
) -> None:
    program = launch("scripts.cli", "serve", str(tiny_checkpoint), "--port", "0", "--threads", "1")
    program.wait_for(LOADING)
    program.signal(signal.SIGKILL)
    program.wait_until_gone()


def test_a_signal_while_starting_leaves_nothing(
    launch: "Launch", tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = ["--port", "0", "--threads", "1", "--run-dir", str(run_dir)]
    program = launch("scripts.cli", "serve", str(tiny_checkpoint), *flags)
    program.wait_for(LOADING)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.survivors() == []
    assert not run_dir.exists()
    assert "Traceback" not in program.output


def test_a_second_signal_waits_for_no_stream(serve: "Serve") -> None:
    stack = serve("--shutdown-timeout", "1000")
    body = {"model": "tiny", "prompt": "x", "max_tokens": 16000, "stream": True, "ignore_eos": True}
    with (
        httpx2.Client(base_url=stack.base_url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        next(response.iter_bytes())
        stack.program.signal(signal.SIGTERM)
        stack.program.wait_for("open streams have 1000 s")
        stack.program.signal(signal.SIGTERM)
        assert stack.gone() == 0


def test_a_port_in_use_is_said_before_anything_starts(launch: "Launch", tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        program = launch("scripts.cli", "serve", str(tiny_checkpoint), "--port", str(port))
        assert program.wait() == 78
    (line,) = program.output.splitlines()
    assert f"port {port} on 127.0.0.1 is in use" in line
    assert "--port" in line


def test_an_unknown_flag_stops_the_start_with_a_suggestion(launch: "Launch") -> None:
    program = launch("scripts.cli", "serve", "--max-num-sequences", "8")
    assert program.wait() == 78
    assert "did you mean --max-num-seqs?" in program.output


def test_a_checkpoint_that_cannot_be_served_is_one_line(
    launch: "Launch", tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BirdForCausalLM"]}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    program = launch("scripts.cli", "serve", str(folder), "--port", "0", "--threads", "1")
    assert program.wait() == 78, program.output
    last = program.output.splitlines()[-1]
    assert last.startswith("tern: error: worker: ")
    assert "BirdForCausalLM" in last
    assert "Traceback" not in program.output
