"""Where the journal and reports of crashes may lie."""

import os
from pathlib import Path

import pytest

from protocol.errors import StartupError
from protocol.options import ServerOptions
from scripts.output_paths import resolve


def test_by_default_no_journal_and_reports_in_the_users_folder() -> None:
    options = resolve(ServerOptions())
    assert options.journal == ""
    assert options.crash_dir == os.path.expanduser("~/.local/state/tern/crashes")
    assert resolve(ServerOptions(crash_dir="")).crash_dir == ""


def test_paths_become_absolute_and_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = resolve(ServerOptions(journal="journal", crash_dir="crashes/here", max_restarts=7))
    assert options.journal == str(tmp_path / "journal")
    assert options.crash_dir == str(tmp_path / "crashes" / "here")
    assert os.stat(options.crash_dir).st_mode & 0o777 == 0o700
    assert options.max_restarts == 7
    assert not (tmp_path / "journal").exists()


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=f"--journal: there is no folder {tmp_path}/none"):
        resolve(ServerOptions(journal=str(tmp_path / "none" / "journal")))
    with pytest.raises(StartupError, match=f"--journal {tmp_path}: is a folder"):
        resolve(ServerOptions(journal=str(tmp_path)))
    with pytest.raises(StartupError, match=f"--crash-dir {tmp_path}/file/here: cannot be made: Not a dir"):
        resolve(ServerOptions(crash_dir=str(tmp_path / "file" / "here")))
    with pytest.raises(StartupError, match=f"--crash-dir {tmp_path}/file: cannot be made"):
        resolve(ServerOptions(crash_dir=str(tmp_path / "file")))


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(StartupError, match=f"--crash-dir: the folder {tmp_path} cannot be written"):
        resolve(ServerOptions(crash_dir=str(tmp_path)))
    with pytest.raises(StartupError, match=f"--journal: the folder {tmp_path} cannot be written"):
        resolve(ServerOptions(journal=str(tmp_path / "journal")))
