"""`tern soak`: passes on a sound server over every fault, and notices what is not sound."""

import random
from collections import Counter
from pathlib import Path

import pytest

from scripts.bench.stack import Stack
from scripts.cli import main as tern
from scripts.soak.cli import main
from scripts.soak.faults import Faults
from scripts.soak.http_answer import HttpAnswer
from scripts.soak.questions import Question, draw
from scripts.soak.soak import Plan, Soak
from scripts.soak.tally import Tally, difference
from scripts.soak.users import Reference, Users
from scripts.soak.vitals import Sample, growth_of

SMALL = ["--streams", "12", "--references", "24", "--faults", "10", "--fault-every", "0.5"]
NUM_KINDS = 10


@pytest.mark.timeout(300)
def test_a_sound_server_passes_every_kind_of_fault(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*SMALL, "--minutes", "4", "--seed", "7"], {})
    output = capsys.readouterr().out
    assert code == 0, output
    assert "passed" in output
    assert f"{NUM_KINDS} faults" in output
    for kind in ("worker", "engine_core", "frontend"):
        assert f"× {kind}" in output


@pytest.mark.timeout(300)
def test_a_wrong_answer_is_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed of every question that is asked in the end differs from the reference's."""
    learn = Users.learn

    async def learn_others(users: Users, questions: list[Question], at_once: int) -> list[Reference]:
        right = await learn(users, questions, at_once)
        return [
            Reference(question, other.text, other.finish_reason, other.num_tokens, other.token_ids)
            for question, other in zip(questions, right[1:] + right[:1], strict=True)
        ]

    monkeypatch.setattr(Users, "learn", learn_others)
    code = main(["--streams", "4", "--references", "8", "--faults", "1", "--fault-every", "0.5"], {})
    output = capsys.readouterr().out
    assert code == 1, output
    assert "wrong: wrong answer: " in output
    assert "FAILED" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--streams", "0"], "--streams 0: expected int >= 1"),
        (["--minutes", "-1"], "--minutes -1: expected float > 0"),
        (["--fault-evry", "3"], "unknown flag --fault-evry"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tern(["soak", *flags]) == 78
    assert message in capsys.readouterr().err


# ── what it judges by ───────────────────────────────────────────────────────────────────────────


def samples(memory_mb: list[float], threads: int = 4) -> list[Sample]:
    return [Sample(float(i), memory, threads, 10, i) for i, memory in enumerate(memory_mb)]


def test_growth_is_that_of_the_second_half() -> None:
    warm_up = [20.0 + i for i in range(20)] + [40.0] * 20
    assert growth_of("worker", 1, samples(warm_up)).memory_mb == pytest.approx(0)
    assert growth_of("worker", 1, samples(warm_up)).is_flat
    leak = growth_of("worker", 1, samples([20.0 + i for i in range(40)]))
    assert leak.memory_mb == pytest.approx(19)
    assert not leak.is_flat


def test_a_difference_is_told_without_the_answers() -> None:
    assert difference("abcd", "abXd") == "parts from the right one at 2; length 4 instead of 4"
    assert difference([1, 2], [1, 2, 3]) == "parts from the right one at 2; length 2 instead of 3"
    assert difference(3, 4) == "3 instead of 4"
    tally = Tally()
    assert tally.compare("text", "a", "a")
    assert not tally.compare("text", "a", "b")
    assert tally.wrong == {"wrong answer": 1}


def test_restarts_are_counted_in_the_servers_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "10:00:00 tern: worker (pid 7) was killed by SIGKILL; starting it again now\n"
        "10:00:00 tern: worker is ready again after 0.1 s (pid 8)\n"
        "10:00:01 tern: frontend 1 (pid 9) was killed by SIGKILL (it is stopped); starting it again now\n"
        "10:00:02 tern: engine core (pid 6) was killed by SIGKILL; starting it again in 0.25 s\n"
    )
    stack = Stack("127.0.0.1", 1, str(tmp_path), 0.0, log)
    tally = Tally()
    faults = Faults(stack, tally, random.Random(0))
    assert faults.restarts_seen() == {"worker": 1, "frontend": 1, "engine_core": 1}
    soak = Soak(Plan(1, 1, 1, 1, 1, 1), stack)
    soak._judge({}, {})
    assert soak.tally.wrong == {"restarts": 1}


def test_questions_are_the_same_for_a_seed_and_share_prefixes() -> None:
    questions = draw(100, random.Random(5))
    assert questions == draw(100, random.Random(5))
    assert questions != draw(100, random.Random(6))
    beginnings = Counter(question.prompt[:8] for question in questions)
    assert len(beginnings) == 5
    assert {question.temperature for question in questions} == {0.0, 1.0}


def test_an_answer_takes_events_only_whole() -> None:
    answer = HttpAnswer()
    answer._on_event(b'id: 3\ndata: {"choices": [{"text": "ab", "finish_reason": null}]}', 200)
    answer._on_event(b'data: {"choices": [{"text": "c", "finish_reason": "length"}]}', 200)
    answer._on_event(b'data: {"choices": [], "usage": {"completion_tokens": 5}}', 200)
    assert not answer.done
    answer._on_event(b"data: [DONE]", 200)
    assert (answer.text, answer.finish_reason, answer.num_tokens) == ("abc", "length", 5)
    assert (answer.last_id, answer.done, answer.num_events) == ("3", True, 3)
    answer._on_event(b'data: {"error": {"message": "no"}}', 200)
    assert answer.error.startswith("200: ")
