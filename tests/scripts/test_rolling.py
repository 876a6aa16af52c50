"""SIGHUP over fake frontends (fakes.py): who starts, who retires, and what goes on meanwhile."""

import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scripts.conftest import FakeStack, StartFakes


def roll(stack: "FakeStack") -> None:
    """SIGHUP, until both frontends are replaced."""
    after = len(stack.program.output)
    stack.program.signal(signal.SIGHUP)
    for _ in range(2):
        after = stack.program.wait_for("frontend is replaced", after).end()


def test_one_after_the_other_and_the_rest_stays(start: "StartFakes") -> None:
    stack = start()
    before = stack.pids
    roll(stack)
    for pid in before["frontend"]:
        stack.program.wait_for(rf"\(pid {pid}\) exited with code 0; its successor serves")
    stack.program.wait_until(lambda: len(stack.pids["frontend"]) == 2, "only successors are listed")
    after = stack.pids
    assert set(before["frontend"]).isdisjoint(after["frontend"])
    assert (before["engine_core"], before["worker"]) == (after["engine_core"], after["worker"])
    assert stack.ends(signal.SIGTERM) == 0
    assert "starting it again" not in stack.program.output
    told = stack.told("front0")
    assert told.count("EngineAt") == 2  # the successor's too
    assert re.findall(r"(\d+) Retire", told) < re.findall(r"(\d+) Drain", told)
    for name in ("front0", "front1"):
        (retired,) = re.findall(r"^(\d+) Retire", stack.told(name), re.M)
        gone = f"PeerGone(incarnation={retired}, crashed=False, cause='exited with code 0')"
        assert gone in stack.told("core")


def test_who_retires_may_take_its_time_to_exit(start: "StartFakes") -> None:
    """On a busy machine an interpreter's end takes longer than one may take that nobody has told to go."""
    stack = start(grace=0)
    before = stack.pids["frontend"]
    roll(stack)
    for pid in before:
        stack.program.wait_for(rf"\(pid {pid}\) exited with code 0; its successor serves")
    assert stack.ends(signal.SIGTERM) == 0


def test_twice(start: "StartFakes") -> None:
    stack = start()
    for times in ("once", "twice"):
        old = stack.pids["frontend"]
        roll(stack)
        for pid in old:
            stack.program.wait_for(rf"\(pid {pid}\) exited with code 0; its successor serves")
        stack.program.wait_until(lambda: len(stack.pids["frontend"]) == 2, f"only successors: {times}")
        assert set(old).isdisjoint(stack.pids["frontend"])
    assert stack.ends(signal.SIGTERM) == 0


def test_a_successor_that_does_not_start_changes_nothing(start: "StartFakes") -> None:
    stack = start()
    before = stack.pids
    (stack.folder / "front0.does").write_text("misconfigured")
    stack.program.signal(signal.SIGHUP)
    stack.program.wait_for(
        "exited with code 78: .*: no such\nmodel before it was ready; the frontends that serve stay"
    )
    stack.program.wait_until(lambda: stack.pids == before, "the same processes as before")
    (stack.folder / "front0.does").write_text("serve")
    roll(stack)
    assert stack.ends(signal.SIGTERM) == 0
    assert "starting it again" not in stack.program.output


def test_who_still_has_streams_hears_all_that_matters(start: "StartFakes") -> None:
    stack = start(front0="busy_streams", front1="busy_streams")
    old = stack.pids["frontend"]
    roll(stack)
    stack.program.signal(signal.SIGHUP)
    stack.program.wait_for("SIGHUP: ignored: the last one's frontends have not all finished")
    assert len(stack.pids["frontend"]) == 4
    stack.kill("engine_core")
    stack.program.wait_for("engine_core is ready again")
    assert set(old) < set(stack.pids["frontend"])
    assert stack.ends(signal.SIGTERM) == 0
    for name in ("front0", "front1"):
        told = stack.told(name)
        first, second = re.findall(r"^(\d+) Drain", told, re.M)
        assert first != second
        endpoint = (endpoints := re.findall(r"clients_endpoint='(\S+)'", told))[-1]
        assert endpoints.count(endpoint) == 2  # the old one and its successor


def test_one_that_is_killed_after_its_successor_took_over_is_not_started_again(start: "StartFakes") -> None:
    stack = start(front0="busy_streams")
    roll(stack)
    stack.kill("frontend", 0)
    stack.program.wait_for("front0 .* was killed by SIGKILL; its successor serves")
    assert stack.ends(signal.SIGTERM) == 0
    assert "starting it again" not in stack.program.output


def test_one_that_dies_before_its_successor_is_ready(start: "StartFakes") -> None:
    stack = start()
    (stack.folder / "front0.does").write_text("silent")
    old = stack.pids["frontend"][0]
    stack.program.signal(signal.SIGHUP)
    stack.program.wait_until(lambda: "silent" in stack.told("front0"), "the successor starts")
    (stack.folder / "front0.does").write_text("serve")
    stack.kill("frontend", 0)
    stack.program.wait_for(rf"\(pid {old}\) was killed by SIGKILL; starting it again now")
    stack.program.wait_for("frontend is ready again")
    stack.kill("frontend", 1)
    stack.program.wait_for("was killed by SIGKILL before it was ready; the frontends that serve stay")
    assert stack.ends(signal.SIGTERM) == 0


def test_a_signal_while_a_successor_starts_drains_those_that_serve(start: "StartFakes") -> None:
    stack = start(shutdown_timeout=1000)
    (stack.folder / "front0.does").write_text("silent")
    stack.program.signal(signal.SIGHUP)
    stack.program.wait_until(lambda: len(stack.pids["frontend"]) == 3, "the successor starts")
    assert stack.ends(signal.SIGTERM) == 0
    assert "Drain(timeout_s=1000.0)" in stack.told("front0")
    assert "Drain(timeout_s=1000.0)" in stack.told("front1")


def test_hangup_while_starting_is_ignored(start: "StartFakes") -> None:
    stack = start(ready=False, rank0="silent")
    stack.program.wait_for("rank0: loading")
    stack.program.signal(signal.SIGHUP)
    stack.program.wait_for("SIGHUP: ignored while starting")
    assert stack.ends(signal.SIGTERM) == 0
