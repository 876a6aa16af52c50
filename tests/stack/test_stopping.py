"""How a server ends, and how it does not start."""

import json
import signal
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


def test_a_stream_that_does_not_finish_in_time_is_told(serve: "Serve") -> None:
    stack = serve("--shutdown-timeout", "0.2", held=True)
    stack.hold.after(1000)
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
    stack.hold.release()
    last = received.strip().rpartition(b"data: ")[2]
    assert "the server is stopping" in json.loads(last)["error"]["message"]
    assert stack.gone() == 0


LOADING = "worker: importing torch"


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
