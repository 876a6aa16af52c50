"""Jobs: one at work at a time, taken over behind the last whole event, found to be unwanted, bounded."""

from pathlib import Path

import pytest

from frontend import jobs
from frontend.jobs import Job, Jobs
from frontend.outbox import Outbox, Position
from protocol.errors import Overloaded


@pytest.fixture
def folder(tmp_path: Path) -> Jobs:
    return Jobs(str(tmp_path / "jobs"), 1000)


def adopted(folder: Jobs, name: str = "a") -> Job:
    job = folder.adopt(name)
    assert job is not None
    return job


def test_one_at_a_time_works_on_a_job(folder: Jobs) -> None:
    assert folder.adopt("a") is None
    first = folder.create("a", b"{1}")
    assert first.what == b"{1}"
    assert first.position == Position()
    assert folder.adopt("a") is None
    first.release()
    second = adopted(folder)
    assert second.what == b"{1}"
    assert folder.adopt("a") is None
    second.finish()
    second.release()
    assert folder.adopt("a") is None
    assert folder.events("a") is None


def test_it_is_taken_over_behind_the_last_whole_event(folder: Jobs) -> None:
    outbox = Outbox(numbered=True, ids=True)
    outbox.mark("begin", b'{"type":"begin"}')
    outbox.unknown("abc")
    outbox.delta(b"text", b'{"delta":"abc"}')
    first = folder.create("a", b"{}")
    first.append(outbox.take() + b"id: 3.9.9.9\nevent: te", b"")
    first.release()
    second = adopted(folder)
    assert second.position == Position(2, 1, 3, 0)
    events = folder.events("a")
    assert events is not None
    with events:
        assert [block.split(b"\n")[1] for block in events.take()] == [b"event: begin", b"event: text"]
        assert events.take() == []
        second.append(b"id: 3.2.3.0\nevent: end\ndata: {}\n\n", b"")
        assert not events.is_over
        whole = second.events()
        second.finish()
        second.release()
        assert events.is_over
        assert [block.split(b"\n")[1] for block in events.take()] == [b"event: end"]
    assert whole.count(b"\n\n") == 3


def test_whoever_works_on_it_finds_out_that_it_is_not_wanted(folder: Jobs) -> None:
    folder.cancel("a")
    job = folder.create("a", b"{}")
    assert not job.is_cancelled, "the cancellation came before it"
    assert not job.is_deleted
    folder.cancel("a")
    assert job.is_cancelled
    folder.delete("a")
    assert job.is_deleted
    job.release()
    again = folder.create("a", b"{}")
    assert not again.is_cancelled
    again.release()


def test_it_is_bounded(folder: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_JOBS", 2)
    first, second = folder.create("a", b"{}"), folder.create("b", b"{}")
    with pytest.raises(Overloaded, match="2 background responses"):
        folder.create("c", b"{}")
    for _ in range(3):
        first.append(b"x" * 398 + b"\n\n", b"full\n\n")
    assert first.events() == b"x" * 398 + b"\n\n" + b"x" * 398 + b"\n\nfull\n\n"
    first.release()
    second.release()
