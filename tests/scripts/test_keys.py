"""`tern keys`: two files, of which only one is secret."""

import stat
from pathlib import Path

import pytest

from protocol.curve import CurveKeys
from scripts.cli import main


def test_a_pair_of_files_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("engine", "laptop"):
        assert main(["keys", str(tmp_path / name)]) == 0
    assert stat.S_IMODE((tmp_path / "laptop").stat().st_mode) == 0o600
    keys = CurveKeys.read(str(tmp_path / "engine.pub"), str(tmp_path / "laptop"))
    assert len({keys.server_public, keys.public, keys.secret}) == 3
    output = capsys.readouterr().out
    assert str(tmp_path / "laptop.pub") in output
    assert keys.secret not in output


@pytest.mark.parametrize("there", ["engine", "engine.pub"])
def test_nothing_is_overwritten(tmp_path: Path, there: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / there).write_text("precious")
    assert main(["keys", str(tmp_path / "engine")]) == 78
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"
    assert "exists already" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", str(tmp_path / "none" / "engine")]) == 78
    assert main(["keys"]) == 78
    assert "cannot be written: No such file" in capsys.readouterr().err
