"""The flight recorder and the crash reports."""

import json
import stat
from pathlib import Path

import pytest

from engine_core.journal import Journal, Opened, Record, Submitted, read
from protocol import columns
from protocol.messages import EngineFacts
from protocol.sampling import SamplingParams
from protocol.steps import Reset, StepFailed, StepPlan, StepResult
from tests.engine_core.rig import Rig
from worker.stub import StubRunner

SAMPLING = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0)
CANARY = [377, 378, 379]
FACTS = EngineFacts("m", 512, 4096, 16, 64, (0,), 8)


def replay(records: list[Record], runner: StubRunner) -> int:
    """Execute every plan again: how many results were compared. Raises AssertionError at a difference."""
    compared = 0
    answers: dict[tuple[int, int], bytes] = {}
    for record in records:
        match record:
            case Reset():
                runner.reset()
            case StepPlan():
                answers[record.epoch, record.step] = runner.execute(record).token_ids
            case StepResult():
                assert answers[record.epoch, record.step] == record.token_ids
                compared += 1
            case _:
                pass
    return compared


def test_a_recording_replays_token_for_token_over_crashes(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    rig = Rig(journal=path)
    rig.client(b"a")
    streams = [rig.submit(b"a", [number + 1] * 20, SAMPLING) for number in range(6)]
    while len(streams[0].token_ids) < 10:
        rig.turn()
    rig.kill_worker()
    rig.settle()
    rig.engine.close()
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    before, after = list(read(f"{path}.old")), list(read(path))
    assert isinstance(before[0], Opened)
    assert isinstance(after[1], Reset)
    assert sum(isinstance(record, Submitted) for record in before) == 6
    assert replay(before, rig.runner) > 5
    assert replay(after, rig.runner) >= 20


def test_a_failed_step_is_on_record_and_the_epoch_after_it_replays(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    rig = Rig(journal=path)
    rig.client(b"a")
    rig.submit(b"a", [1] * 20, SAMPLING)
    rig.poison[500] = "internal_error"
    rig.submit(b"a", [500], SAMPLING)
    rig.settle()
    rig.engine.close()
    records = list(read(path))
    assert any(isinstance(record, StepFailed) for record in records)
    assert sum(isinstance(record, Reset) for record in records) >= 3
    assert replay(records, rig.runner) >= 30


def test_it_stops_when_full_and_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path), 1 << 16)
    opened = Opened("f", "m", FACTS)
    journal.begin_epoch(opened, Reset(1))
    plan = StepPlan(1, 1, columns.pack_ids(range(256)), columns.pack_ids([1] * 256))
    for _ in range(100):
        journal.write(plan)
    journal.flush()
    assert path.stat().st_size <= 1 << 15
    journal.begin_epoch(opened, Reset(2))
    journal.write(plan)
    journal.close()
    assert list(read(str(path)))[1:] == [Reset(2), plan]
    assert path.stat().st_size + Path(f"{path}.old").stat().st_size <= 1 << 16


def test_the_next_engine_core_leaves_the_recording_of_the_one_before(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    for number in (1, 2):
        journal = Journal(path, 1 << 20)
        journal.begin_epoch(Opened("f", "m", FACTS), Reset(number))
        journal.close()
    assert [list(read(name))[1:] for name in (f"{path}.old", path)] == [[Reset(1)], [Reset(2)]]


def test_a_recording_that_was_cut_off_is_read_up_to_there_and_anything_else_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path), 1 << 20)
    journal.begin_epoch(Opened("f", "m", FACTS), Reset(1))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(list(read(str(path)))) == 1
    path.write_bytes(whole[:4] + b"\xc1" * (len(whole) - 4))
    with pytest.raises(ValueError, match="not a journal"):
        list(read(str(path)))


def test_a_crash_is_reported_without_a_token_of_anybody(tmp_path: Path) -> None:
    folder = tmp_path / "crashes"
    rig = Rig(crash_dir=str(folder))
    rig.client(b"a")
    stream = rig.submit(b"a", CANARY * 5, SamplingParams(max_tokens=400, ignore_eos=True, temperature=0))
    while len(stream.token_ids) < 5:
        rig.turn()
    for _ in range(20):
        assert rig.turn()
        rig.kill_worker()
        rig.turn()
        rig.turn()
    reports = sorted(folder.iterdir())
    assert 0 < len(reports) <= 16
    text = reports[-1].read_text()
    report = json.loads(text)
    assert report["cause"] == "was killed"
    assert report["steps"]
    assert report["requests"][0]["num_prompt_tokens"] == 15
    assert not any(str(token) in text for token in CANARY)
