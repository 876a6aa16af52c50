"""The exchange with other engines, with a small program in an engine's place, and the table."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.bench.peers.compare import LOADS, table
from scripts.bench.peers.drivers.answering import check_lengths
from scripts.bench.peers.peer import PROJECT, Peer

ENGINE = """
import sys
from scripts.bench.peers.drivers.answering import answer, claim_stdout
mine = claim_stdout()
print("an engine greets")
def generate(prompts, num_tokens):
    print("an engine talks while it works")
    if num_tokens == 13:
        raise ValueError("13 tokens bring bad luck")
answer({"generate": generate}, mine)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-c", ENGINE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=PROJECT,
            start_new_session=True,
        )
    with started:
        yield started
        started.kill()


def state_of(process: "subprocess.Popen[str]") -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_answers_seconds_and_rests_between(process: "subprocess.Popen[str]", tmp_path: Path) -> None:
    peer = Peer(process, tmp_path / "log")
    for num_tokens in (1, 2):
        assert state_of(process) == "T"
        assert 0 <= peer.seconds("generate", [[1, 2]], num_tokens) < 60
    assert state_of(process) == "T"


def test_a_failing_engine_is_quoted(process: "subprocess.Popen[str]", tmp_path: Path) -> None:
    peer = Peer(process, tmp_path / "log")
    with pytest.raises(RuntimeError, match="13 tokens bring bad luck"):
        peer.seconds("generate", [[1]], 13)


def test_a_short_answer_is_an_error() -> None:
    check_lengths([4, 4], [[1], [2]], 4)
    with pytest.raises(ValueError, match="2 answers of 4 tokens"):
        check_lengths([4, 3], [[1], [2]], 4)


def test_table_compares_with_the_best_of_the_others() -> None:
    rates = {"Tern": 30.0, "slow": 10.0, "quick": 20.0}
    said = table("bf16", {(name, load.title): [rate] for name, rate in rates.items() for load in LOADS})
    assert "| Tern, over the best of the others | 1.50× | 1.50× | 1.50× |" in said
