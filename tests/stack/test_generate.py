"""`tern generate` and LLM with a stack of their own, whose processes and selves are killed."""

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protocol.errors import InvalidRequest, ModelNotFound, StartupError
from scripts.api_client import ApiClient
from scripts.llm import LLM
from tests.conftest import DEADLINE_S
from tests.stack.hold import Hold
from tests.worker.adapters import write_adapter

if TYPE_CHECKING:
    from tests.conftest import Program

    Launch = Callable[..., Program]

NUM_LINES, NUM_TOKENS = 200, 40


def pids(folder: Path, parent: int) -> dict[str, list[int]]:
    """Of the server that this process has started; killed ones have left their folders."""
    for path in folder.glob("tern-*/pids.json"):
        found: dict[str, list[int]] = json.loads(path.read_text())
        stat = Path(f"/proc/{found['supervisor'][0]}/stat")
        if stat.exists() and int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
            return found
    raise ProcessLookupError(parent)


def test_killed_at_any_instant_it_goes_on_without_a_doubled_or_lost_line(
    launcher: "Callable[[Path], Launch]", tiny_checkpoint: Path, tmp_path: Path
) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    asked = ({"prompt": f"{i}", "id": i, "ignore_eos": True} for i in range(NUM_LINES))
    inputs.write_text("".join(json.dumps(line) + "\n" for line in asked))
    argv = [
        "generate",
        str(tiny_checkpoint),
        "--worker",
        "stub",
        "--input",
        str(inputs),
        "--output",
        str(output),
    ]
    argv += ["--max-tokens", str(NUM_TOKENS), "--temperature", "0", "--concurrency", "2"]
    with tempfile.TemporaryDirectory(prefix="test-", ignore_cleanup_errors=True) as short:
        launch, hold = launcher(Path(short)), Hold(tmp_path / "hold")

        def lines() -> int:
            return output.read_bytes().count(b"\n") if output.exists() else 0

        def has_lines(least: int) -> bool:
            return lines() >= least

        for least in (10, 40):
            hold.after((least + 10) * NUM_TOKENS)
            program = launch("scripts.cli", *argv, TERN_FAULTS=hold.environ)
            program.wait_until(partial(has_lines, least), f"{least} lines")
            program.signal(signal.SIGKILL)
            program.wait()
            assert lines() < NUM_LINES
        hold.after(20 * NUM_TOKENS)
        before = lines()
        program = launch("scripts.cli", *argv, TERN_FAULTS=hold.environ)
        program.wait_until(lambda: lines() > before + 10, "progress")
        for kind in ("worker", "engine_core", "frontend"):
            os.kill(pids(Path(short), program.pid)[kind][0], signal.SIGKILL)
        hold.release()
        assert program.wait() == 0, program.output
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == list(range(NUM_LINES))
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {NUM_TOKENS}


def test_a_server_that_cannot_start_is_the_one_error(
    launch: "Launch", tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text('"x"\n')
    files = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    program = launch("scripts.cli", "generate", str(tiny_checkpoint), *files, "--max-model-len", "32k")
    assert program.wait() == 78
    assert "--max-model-len 32768 is longer than the model's 16384 positions" in program.output
    assert program.output.count("\n") == 1


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    adapter = write_adapter(tmp_path_factory.mktemp("red"), {"model.layers.0.self_attn.q_proj": (64, 64)})
    lora = [f"red={adapter}"]
    with LLM(str(tiny_checkpoint), worker="stub", max_model_len="4k", crash_dir="", lora=lora) as llm:
        yield llm


def test_llm_answers_in_order(llm: LLM) -> None:
    fixed = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    prompts: list[str | list[int]] = [*(f"{i}" for i in range(50)), [5, 6, 7]]
    answers = llm.generate(prompts, **fixed)
    alone = [llm.generate(f"{i}", **fixed)[0] for i in (0, 49)]
    assert len(answers) == 51
    assert [answers[i].text for i in (0, 49)] == [one.text for one in alone]
    assert alone[0].text != alone[1].text
    assert {one.num_tokens for one in answers} == {4}
    assert answers[-1].num_prompt_tokens == 3
    adapted = llm.generate(["0", "49"], model="red", **fixed)
    assert all(answers[i].text != one.text for i, one in zip((0, 49), adapted, strict=True))


def test_llm_chats(llm: LLM) -> None:
    question = [{"role": "user", "content": "hi"}]
    [one] = llm.chat(question, max_tokens=3, temperature=0)
    two = llm.chat([question, question], max_tokens=3, temperature=0, n=2, seed=1)
    assert [len(answer.texts) for answer in two] == [2, 2]
    assert one.text == two[0].text
    assert two[0].document["object"] == "chat.completion"


def test_llm_raises_what_the_server_says(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="max_tokens") as caught:
        llm.generate("x", max_tokens=-1)
    assert caught.value.param == "max_tokens"
    with pytest.raises(ModelNotFound):
        llm.generate("x", model="other")
    with pytest.raises(InvalidRequest, match="whole answers"):
        llm.generate("x", stream=True)


def test_llm_refuses_options_that_are_none() -> None:
    with pytest.raises(StartupError, match="LLM takes no max_len; did you mean"):
        LLM("x", max_len=3)
    with pytest.raises(StartupError, match="dtype = int3: expected one of"):
        LLM("x", dtype="int3")


def test_llm_survives_the_death_of_its_processes(llm: LLM) -> None:
    prompts = [f"{i}" for i in range(32)]
    wanted = [one.text for one in llm.generate(prompts, max_tokens=1000, temperature=0, ignore_eos=True)]
    got: list[str] = []

    def ask() -> None:
        answers = llm.generate(prompts, max_tokens=1000, temperature=0, ignore_eos=True)
        got[:] = [one.text for one in answers]

    asking = threading.Thread(target=ask)
    folder = Path(llm._server.url.removeprefix("unix:")).parent
    client = ApiClient(llm._server.url)
    asking.start()
    while b"tern_num_requests_running 0" in client.get("/metrics").body:
        if not asking.is_alive():  # it was over before anybody looked
            asking = threading.Thread(target=ask)
            asking.start()
    client.close()
    found = json.loads((folder / "pids.json").read_text())
    for kind in ("frontend", "engine_core", "worker"):
        os.kill(found[kind][0], signal.SIGKILL)
    asking.join(DEADLINE_S)
    assert got == wanted
