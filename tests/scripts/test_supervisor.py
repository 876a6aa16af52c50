"""The supervisor over fake processes (fakes.py): who is told what, who is restarted, how it ends."""

import re
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.scripts.conftest import StartFakes


def test_all_are_told_where_the_engine_core_is(start: "StartFakes") -> None:
    stack = start()
    endpoint = (stack.folder / "run" / "endpoint").read_text().strip()
    assert re.fullmatch(rf"ipc://{stack.folder}/run/c\d+", endpoint)
    assert stack.ends(signal.SIGTERM) == 0
    for name in ("rank0", "rank1", "front0", "front1"):
        assert f"clients_endpoint='{endpoint}'" in stack.told(name)


def test_facts_and_phases_are_shown(start: "StartFakes") -> None:
    stack = start()
    assert "'num_blocks': '10'" in stack.program.output
    assert "rank0: loading a lot" in stack.program.output


def test_pids_are_written_and_right(start: "StartFakes") -> None:
    stack = start()
    pids = stack.pids
    assert {kind: len(group) for kind, group in pids.items()} == {
        "supervisor": 1, "engine_core": 1, "worker": 2, "frontend": 2
    }  # fmt: skip
    assert sorted(pid for group in pids.values() for pid in group) == sorted(stack.program.survivors())


def test_a_dead_engine_core_is_replaced_under_a_new_endpoint_and_the_others_stay(start: "StartFakes") -> None:
    stack = start()
    before, first = stack.pids, (stack.folder / "run" / "endpoint").read_text()

    def told(endpoint: str) -> bool:
        return all(endpoint.strip() in stack.told(name) for name in ("rank0", "front1"))

    stack.program.wait_until(lambda: told(first), "they are told")
    stack.kill("engine_core")
    stack.program.wait_for(r"engine_core is ready again after .* s \(pid \d+\)")
    after, second = stack.pids, (stack.folder / "run" / "endpoint").read_text()
    assert first != second
    assert before["engine_core"] != after["engine_core"]
    assert (before["worker"], before["frontend"]) == (after["worker"], after["frontend"])
    stack.program.wait_until(lambda: told(second), "they are told again")
    stack.ends(signal.SIGTERM)
    for name in ("rank0", "front1"):
        assert stack.told(name).index(first.strip()) < stack.told(name).index(second.strip())


def test_a_dead_rank_takes_its_group_with_it(start: "StartFakes") -> None:
    stack = start()
    before = stack.pids

    def incarnations() -> list[str]:
        return re.findall(r"^(\d+) EngineAt", stack.told("rank0"), re.M)

    stack.program.wait_until(incarnations, "rank 0 is told")
    stack.kill("worker", 1)
    stack.program.wait_for("rank1 .* was killed by SIGKILL; starting it again now")
    stack.program.wait_for("worker is ready again")
    after = stack.pids
    assert set(before["worker"]).isdisjoint(after["worker"])
    assert (before["engine_core"], before["frontend"]) == (after["engine_core"], after["frontend"])
    stack.program.wait_until(lambda: len(incarnations()) == 2, "its successor is told")
    stack.ends(signal.SIGTERM)
    first, second = incarnations()
    assert int(first) < int(second)
    gone = f"PeerGone(incarnation={first}, crashed=False, cause='was killed by SIGKILL')"
    assert gone in stack.told("core")


def test_what_a_child_leaves_is_its_successors(start: "StartFakes") -> None:
    """Until one that got it ends by itself before it is ready: it may be why."""
    stack = start(rank1="leaves")
    does = stack.folder / "rank1.does"

    def incarnations() -> list[str]:
        return list(dict.fromkeys(re.findall(r"^(\d+) EngineAt", stack.told("rank0"), re.M)))

    def is_replaced(nth: int, mode: str) -> None:
        stack.program.wait_until(lambda: len(incarnations()) == nth, "rank 0 is told")
        does.write_text(mode)
        seen = len(stack.program.output)
        stack.kill("worker")
        stack.program.wait_for("worker is ready again", seen)

    is_replaced(1, "leaves")
    is_replaced(2, "crash_once")
    assert does.read_text() == "serve"
    stack.ends(signal.SIGTERM)
    assert "inherits" not in stack.told("rank0")
    first, second, *_ = incarnations()
    crashed = int(second) + 1
    assert re.findall(r"^(\d+) inherits from (\d+)", stack.told("rank1"), re.M) == [
        (second, first),
        (str(crashed), second),
    ]


def test_the_engine_core_hears_who_died_by_itself(start: "StartFakes") -> None:
    stack = start()
    stack.kill("worker", 0, signal.SIGSEGV)
    stack.program.wait_for("worker is ready again")
    stack.ends(signal.SIGTERM)
    assert "crashed=True, cause='was killed by SIGSEGV'" in stack.told("core")


@pytest.mark.parametrize(("killed", "crashed"), [(0, 1), (1, 0)])
def test_who_ends_because_another_rank_was_killed_is_no_crash(
    start: "StartFakes", killed: int, crashed: int
) -> None:
    """Both are dead before the supervisor looks, and it may see either end first."""
    stack = start()
    stack.program.signal(signal.SIGSTOP)
    stack.kill("worker", killed)
    stack.kill("worker", crashed, signal.SIGSEGV)
    dying = set(stack.pids["worker"])
    stack.program.wait_until(lambda: dying.isdisjoint(stack.program.survivors()), "both have ended")
    stack.program.signal(signal.SIGCONT)
    stack.program.wait_for("worker is ready again")
    stack.ends(signal.SIGTERM)
    assert "PeerGone" in stack.told("core")
    assert "crashed=True" not in stack.told("core")


def test_what_cannot_be_started_again_is_tried_again(start: "StartFakes") -> None:
    stack = start()
    lacks = stack.folder / "worker.lacks"
    lacks.touch()
    stack.kill("worker")
    stack.program.wait_for("worker cannot be started: Too many open files; starting it again in")
    lacks.unlink()
    stack.program.wait_for("worker is ready again")
    assert stack.ends(signal.SIGTERM) == 0


def test_what_can_never_be_started_again_is_the_one_cause(start: "StartFakes") -> None:
    stack = start()
    (stack.folder / "frontend.lacks").touch()
    stack.kill("frontend")
    assert stack.gone() == 1
    last = stack.program.output.splitlines()[-1]
    assert last.startswith("tern: error: frontend cannot be started: Too many open files; gave up after"), (
        last
    )


def test_a_run_folder_that_is_full_stops_nothing(start: "StartFakes") -> None:
    stack = start()
    (stack.folder / "run" / "pids.json.new").symlink_to("/dev/full")
    stack.kill("worker")
    stack.program.wait_for(r"cannot write into \S+: No space left on device")
    stack.program.wait_for("worker is ready again")
    assert stack.ends(signal.SIGTERM) == 0


def test_a_dead_frontend_is_replaced_and_reported_to_the_engine_core(start: "StartFakes") -> None:
    stack = start()
    before = stack.pids["frontend"]
    stack.kill("frontend", 1)
    stack.program.wait_for("frontend is ready again")
    after = stack.pids["frontend"]
    assert before[0] == after[0]
    assert before[1] != after[1]
    stack.ends(signal.SIGTERM)
    assert stack.told("core").count("PeerGone") >= 1


def test_a_start_that_fails_once_is_repeated(start: "StartFakes") -> None:
    stack = start(rank1="crash_once")
    assert "rank1" in stack.program.output
    assert "was killed by SIGSEGV; starting it again" in stack.program.output
    assert stack.ends(signal.SIGTERM) == 0


def test_a_crash_loop_gives_up_and_the_last_line_says_why(start: "StartFakes") -> None:
    stack = start()
    (stack.folder / "core.does").write_text("crash")
    stack.kill("engine_core")
    assert stack.gone() == 3
    last = stack.program.output.strip().splitlines()[-1]
    assert re.fullmatch(r"tern: error: core \(pid \d+\) exited with code 3; gave up after 4 .*", last), last


def test_a_first_start_that_crashes_is_not_tried_again(start: "StartFakes") -> None:
    stack = start(ready=False, rank0="crash")
    assert stack.gone() == 3
    assert re.fullmatch(
        r"tern: error: rank0 \(pid \d+\) exited with code 3", stack.program.output.splitlines()[-1]
    )
    assert "starting it again" not in stack.program.output


def test_a_configuration_error_is_not_tried_again(start: "StartFakes") -> None:
    stack = start(ready=False, rank1="misconfigured")
    assert stack.gone() == 78
    assert stack.program.output.strip().splitlines()[-1] == "tern: error: rank1: no such model (name one)"
    assert "starting it again" not in stack.program.output


def test_ctrl_c(start: "StartFakes") -> None:
    stack = start()
    assert stack.ends(signal.SIGINT) == 130
    assert "SIGINT: stopping" in stack.program.output
    assert "nothing is left running" in stack.program.output


def test_frontends_are_drained_before_the_rest_is_told_to_quit(start: "StartFakes") -> None:
    stack = start()
    assert stack.ends(signal.SIGTERM) == 0
    assert "Drain(timeout_s=5.0)" in stack.told("front0")
    assert "Drain" not in stack.told("core") + stack.told("rank0")
    assert "Quit()" in stack.told("core")
    assert "Quit()" in stack.told("rank1")


def test_what_does_not_stop_is_killed(start: "StartFakes") -> None:
    stack = start(shutdown_timeout=0, grace=0.1, front0="stubborn")
    assert stack.ends(signal.SIGTERM) == 0
    assert re.search("killing what has not stopped: .*front0", stack.program.output)


def test_each_further_signal_skips_a_stage(start: "StartFakes") -> None:
    stack = start(shutdown_timeout=1000, front0="stubborn")
    stack.program.signal(signal.SIGINT)
    stack.program.wait_for("open streams have 1000 s")
    stack.program.signal(signal.SIGINT)
    stack.program.wait_for("SIGINT: stopping core")
    stack.program.wait_until(lambda: "Quit()" in stack.told("front0"), "it is told to quit")
    assert stack.ends(signal.SIGINT) == 130


def test_a_signal_while_starting_waits_for_nobody(start: "StartFakes") -> None:
    stack = start(ready=False, rank0="silent")
    stack.program.wait_for("rank0: loading")
    assert stack.ends(signal.SIGINT) == 130


def test_a_worker_that_dies_while_streams_drain_is_still_replaced(start: "StartFakes") -> None:
    stack = start(shutdown_timeout=1000, front0="stubborn")
    stack.program.signal(signal.SIGTERM)
    stack.program.wait_for("open streams have")
    stack.kill("worker")
    stack.program.wait_for("worker is ready again")
    stack.program.signal(signal.SIGTERM)
    stack.program.wait_for("SIGTERM: stopping core")
    assert stack.ends(signal.SIGTERM) == 0


def test_a_child_that_hangs_up_and_stays_is_killed(start: "StartFakes") -> None:
    stack = start(ready=False, grace=0.1, front1="mute")
    assert stack.gone() == 1
    assert "front1" in stack.program.output.splitlines()[-1]


def test_children_die_with_the_supervisor(start: "StartFakes") -> None:
    stack = start()
    stack.program.signal(signal.SIGKILL)
    stack.program.wait_until_gone()
