"""`tern` as it is typed, and the shell scripts around it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["version"]) == 0
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"{declared}\n" * 2


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("serve", "chat", "bench", "version"))


def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["srve"]) == 78
    assert "unknown command srve; did you mean serve?" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--max-num-seq", "4"]) == 78
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean --max-num-seqs?" in error


def test_the_serve_process_imports_none_of_the_heavy_packages() -> None:
    code = "import sys, scripts.cli, scripts.serve; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "zmq", "starlette", "uvicorn", "numpy", "transformers", "http"}.isdisjoint(
        done.stdout.split()
    )


# ── shell scripts ───────────────────────────────────────────────────────────────────────────────


class Checkout:
    """A copy of the scripts with a `python3.11` that only notes what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "repo" / "scripts").mkdir(parents=True)
        for name in ("install", "serve"):
            shutil.copy(ROOT / "scripts" / name, folder / "repo" / "scripts" / name)
        (folder / "repo" / "pyproject.toml").write_text("one")
        for tool in ("bash", "dirname", "sha256sum", "cat", "cp", "mkdir", "chmod"):
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def python(self, name: str, *, version: str = "3.11", complete: bool = True) -> None:
        """`-m venv … FOLDER` copies it there; what install asks with `-c` is answered as on a new one."""
        path = self.bin / name
        path.write_text(f"""#!/bin/bash
case "$*" in
  *version_info*) echo "{version}" ;;
  *ensurepip*) exit {0 if complete else 1} ;;
  *find_spec*) [[ -e "{self.folder}/torch" ]] ;;
  "-m pip --version") [[ "$0" == */.venv/* || "$0" == */active/* ]] ;;
  "-m venv"*)
    mkdir -p "${{@: -1}}/bin"
    cp "$0" "${{@: -1}}/bin/python"
    echo "venv by {name}" >>"{self.log}" ;;
  "-m pip install"*) shift 3; echo "pip $*" >>"{self.log}" ;;
  *) exit 9 ;;
esac
""")
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "repo" / "scripts" / script), *arguments]
        environ = {"PATH": str(self.bin), **extra}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def took(self) -> list[str]:
        """What was done since the last look."""
        done = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.replace("--disable-pip-version-check ", "") for line in done]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_install_makes_an_environment_once_per_pyproject(checkout: Checkout) -> None:
    checkout.python("python3.11")
    done = checkout.run("install")
    assert done.returncode == 0, done.stderr
    assert checkout.took() == ["venv by python3.11", "pip torch==2.13.0", "pip -e ."]
    (checkout.folder / "torch").touch()
    assert checkout.run("install").returncode == 0
    assert checkout.took() == []
    checkout.run("install", "test")
    assert checkout.took() == ["pip -e .[test]"]
    checkout.run("install")
    assert checkout.took() == []
    (checkout.folder / "repo" / "pyproject.toml").write_text("two")
    checkout.run("install")
    assert checkout.took() == ["pip -e ."]


def test_install_uses_the_environment_that_is_active(checkout: Checkout) -> None:
    checkout.python("python")
    active = checkout.folder / "active" / "bin"
    active.mkdir(parents=True)
    shutil.copy(checkout.bin / "python", active / "python")
    assert checkout.run("install", VIRTUAL_ENV=str(active.parent)).returncode == 0
    assert checkout.took() == ["pip torch==2.13.0", "pip -e ."]
    assert not (checkout.folder / "repo" / ".venv").exists()


def test_install_names_the_package_that_is_missing(checkout: Checkout) -> None:
    checkout.python("python3", version="3.12", complete=False)
    done = checkout.run("install")
    assert done.returncode == 1
    assert "sudo apt install python3.12-venv" in done.stderr


def test_install_prefers_a_python_that_is_complete(checkout: Checkout) -> None:
    checkout.python("python3.13", version="3.13", complete=False)
    checkout.python("python3", version="3.11")
    assert checkout.run("install").returncode == 0
    assert checkout.took()[0] == "venv by python3"


def test_install_without_any_python(checkout: Checkout) -> None:
    checkout.python("python3", version="")
    done = checkout.run("install")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr


def test_serve_installs_and_hands_its_arguments_on(checkout: Checkout) -> None:
    checkout.python("python3")
    tern = checkout.folder / "repo" / ".venv" / "bin" / "tern"
    tern.parent.mkdir(parents=True)
    tern.write_text('#!/bin/bash\nprintf "<%s>" "$@"\n')
    tern.chmod(0o755)
    done = checkout.run("serve", "--port", "1", "a b")
    assert done.stdout == "<serve><--port><1><a b>"
    assert "pip -e ." in checkout.took()


def test_ci_runs_what_everyone_runs() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec ./scripts/test"
    for name in ("install", "lint", "check", "test", "serve"):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name
