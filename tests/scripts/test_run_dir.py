"""The run folder: private, whole, alone, and gone afterwards."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.client import endpoint_file
from protocol.errors import StartupError
from scripts.run_dir import RunDir, check


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A shorter one than `tmp_path`, which is there before: paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="tern-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        monkeypatch.undo()


def test_a_temporary_one_is_private_and_leaves_nothing(own_temporary_folder: Path) -> None:
    run_dir = RunDir.open("")
    assert os.stat(run_dir.path).st_mode & 0o777 == 0o700
    run_dir.make_group_dir(3)
    run_dir.write_endpoint("ipc://x")
    run_dir.remove()
    assert list(own_temporary_folder.iterdir()) == []


def test_the_endpoint_file_is_where_clients_look(tmp_path: Path) -> None:
    run_dir = RunDir.open(str(tmp_path / "run"))
    assert run_dir.endpoint_file == endpoint_file(run_dir.path)
    run_dir.write_endpoint("ipc://one")
    run_dir.write_endpoint("ipc://two")
    assert Path(run_dir.endpoint_file).read_text() == "ipc://two\n"
    run_dir.write_pids({"worker": [1, 2]})
    assert json.loads((tmp_path / "run" / "pids.json").read_text()) == {"worker": [1, 2]}
    run_dir.remove()


def test_a_folder_that_was_there_stays_with_what_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "notes").write_text("mine")
    run_dir = RunDir.open(str(tmp_path))
    run_dir.write_endpoint("ipc://x")
    Path(run_dir.clients_endpoint(7).removeprefix("ipc://")).touch()
    run_dir.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]


def test_leftovers_of_a_server_that_was_killed_are_cleared(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for name in ("c1", "w1", "endpoint", "pids.json", "lock"):
        (tmp_path / name).touch()
    (tmp_path / "g1").mkdir()
    run_dir = RunDir.open(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "metrics", "responses"]
    run_dir.remove()


def test_two_servers_cannot_share_one(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    run_dir = RunDir.open(path)
    with pytest.raises(StartupError, match="another server runs there"):
        RunDir.open(path)
    run_dir.remove()
    RunDir.open(path).remove()


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(StartupError, match="not a folder that only you can enter") as caught:
        RunDir.open(str(tmp_path))
    assert "mode 700" in caught.value.hint


def test_what_open_would_refuse_is_known_without_it(tmp_path: Path) -> None:
    check("")
    new, mine, taken = (str(tmp_path / name) for name in ("new", "mine", "taken"))
    check(new)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir(mode=0o700)
    check(mine)
    run_dir = RunDir.open(taken)
    with pytest.raises(StartupError, match="another server runs there"):
        check(taken)
    run_dir.remove()
    (tmp_path / "mine").chmod(0o755)
    (tmp_path / "file").touch()
    for refused in (mine, str(tmp_path / "file")):
        with pytest.raises(StartupError, match="not a folder that only you can enter"):
            check(refused)
    with pytest.raises(StartupError, match="cannot be made"):
        check(f"{tmp_path}/not/there")
    with pytest.raises(StartupError, match="too long"):
        check(f"{tmp_path}/{'x' * 100}")


def test_a_path_too_long_for_a_socket_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100)
    with pytest.raises(StartupError, match="too long for a socket's path") as caught:
        RunDir.open(str(path))
    assert "--run-dir" in caught.value.hint
    assert not path.exists()


def test_what_a_dead_incarnation_left_is_removed(tmp_path: Path) -> None:
    run_dir = RunDir.open(str(tmp_path / "run"))
    group = Path(run_dir.make_group_dir(5))
    (group / "rank0").touch()
    socket_path = Path(run_dir.clients_endpoint(5).removeprefix("ipc://"))
    socket_path.touch()
    run_dir.forget(5)
    assert not group.exists()
    assert not socket_path.exists()
    run_dir.remove()


def test_the_next_server_removes_what_a_killed_one_left(own_temporary_folder: Path) -> None:
    code = (
        "import os, sys, tempfile; from scripts.run_dir import RunDir; tempfile.tempdir = sys.argv[1];"
        "it = RunDir.open(''); it.write_pids({}); it.make_group_dir(1); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(own_temporary_folder)], check=False)
    (left,) = own_temporary_folder.iterdir()
    living = RunDir.open("")
    living.write_pids({})
    assert not left.exists()
    other = RunDir.open("")
    assert Path(living.path).exists()
    living.remove()
    other.remove()
