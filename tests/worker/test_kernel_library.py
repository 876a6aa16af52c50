"""The library of C kernels is built once, by whoever comes first, and what goes wrong is said."""

import os
import platform
import select
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.errors import StartupError
from worker.kernels.cpu import library

ROOT = Path(__file__).parents[2]


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(folder), **more}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the library in it."""
    cache = tmp_path_factory.mktemp("cache")
    loaded, _ = library.load("native", environ(cache))
    assert loaded is not None
    return cache


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "tern" / "kernels").iterdir())


def fake_compiler(folder: Path, body: str) -> str:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_built_once_and_leaves_nothing_else(built: Path) -> None:
    before = files(built)
    assert len(before) == 1
    assert before[0].endswith(".so")
    loaded, which = library.load("auto", environ(built))
    assert loaded is not None
    assert before[0] in which
    assert files(built) == before


def test_only_the_libraries_used_last_are_kept(tmp_path: Path, built: Path) -> None:
    """Also what a builder that was killed has left is deleted; what another is building now is not."""
    (name,) = files(built)
    mine = built / "tern" / "kernels" / name
    os.utime(mine, (0, 0))
    loaded, _ = library.load("native", environ(built))
    assert loaded is not None
    assert mine.stat().st_mtime > 0
    for builder in ("build-killed", "build-now"):
        (tmp_path / builder).mkdir()
        (tmp_path / builder / "matmul.o").touch()
    now = (tmp_path / "build-now").stat().st_mtime
    for age in range(library.KEPT + 3):
        path = tmp_path / f"tern-{age}.so"
        path.touch()
        os.utime(path, (now - age, now - age))
    os.utime(tmp_path / "build-killed", (1e9, 1e9))
    (tmp_path / "of somebody else").touch()
    library.prune(tmp_path)
    kept = {f"tern-{age}.so" for age in range(library.KEPT)}
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "build-now", "of somebody else"}


def test_several_processes_build_at_once(built: Path, tmp_path: Path) -> None:
    """None is done before all have come to linking, which their compiler sees to."""
    code = "import os; from worker.kernels.cpu import library; print(library.load('native', os.environ)[1])"
    command = [sys.executable, "-c", code]
    library_file, linking = built / "tern" / "kernels" / files(built)[0], tmp_path / "linking"
    linking.mkdir()
    compiler = fake_compiler(
        tmp_path,
        f"""case "$*" in --version | *" -c "*) exit; esac
touch {linking}/$$
until [ $(ls {linking} | wc -l) = 3 ]; do sleep 0.01; done
until [ "$1" = -o ]; do shift; done
cp {library_file} "$2\"""",
    )

    def run(_: int) -> str:
        return subprocess.run(
            command, cwd=ROOT, env=environ(tmp_path, CC=compiler), capture_output=True, text=True, check=True
        ).stdout

    with ThreadPoolExecutor(3) as pool:
        said = set(pool.map(run, range(3)))
    assert len(said) == 1
    assert len(files(tmp_path)) == 1


def test_another_processor_gets_another_file(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library.cache_folder(environ(built))
    here, _ = library.build(folder, environ(built))
    monkeypatch.setattr(library, "_cpu_flags", lambda: "flags: another\n")
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.write_bytes(b"x"))
    there, temporary = library.build(folder, environ(built))
    assert there != here
    assert not temporary
    there.unlink()


@pytest.mark.parametrize(
    ("system", "machine", "flag", "remedy"),
    [
        ("Linux", "x86_64", "-march=native", "apt install gcc"),
        ("Linux", "aarch64", "-mcpu=native", "apt install gcc"),
        ("Darwin", "arm64", "-mcpu=native", "xcode-select --install"),
    ],
)
def test_what_a_system_is_told(
    system: str, machine: str, flag: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    said = fake_compiler(tmp_path, '[ "$1" = --version ] && exit 0; echo "$@"; exit 1')
    with pytest.raises(StartupError, match=flag) as error:
        library.load("native", environ(tmp_path, CC=said))
    assert error.value.hint is not None
    assert error.value.hint.startswith(remedy)


def test_without_a_compiler_torch_serves_and_says_so(tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    loaded, which = library.load("auto", nothing)
    assert loaded is None
    assert which == "kernels of torch, which are slower: none of cc, gcc, clang is found"
    with pytest.raises(StartupError, match="--cpu-kernels native: none of cc, gcc, clang is found"):
        library.load("native", nothing)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 3", "failed (3): it said nothing"),
        ('[ "$1" = --version ] && exit 0; echo "error: no such header"; exit 1', "error: no such header"),
    ],
)
def test_a_broken_compiler(tmp_path: Path, body: str, said: str) -> None:
    broken = environ(tmp_path, CC=fake_compiler(tmp_path, body))
    loaded, which = library.load("auto", broken)
    assert loaded is None
    assert said in which
    with pytest.raises(StartupError) as error:
        library.load("native", broken)
    assert said in str(error.value)
    assert error.value.hint == f"{library.how_to_install()}, or use --cpu-kernels auto"
    assert not (tmp_path / "tern" / "kernels").exists() or files(tmp_path) == []


def test_a_compiler_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that hangs is a child of what was started, and holds its output open."""
    monkeypatch.setattr(library, "COMPILE_TIMEOUT_S", 0.1)
    body = '[ "$1" = --version ] && exit 0; tail -f /dev/null & echo $! >> "$0.children"; wait'
    hangs = environ(tmp_path, CC=fake_compiler(tmp_path, body))
    loaded, which = library.load("auto", hangs)
    assert loaded is None
    assert "takes longer than 0.1 s" in which
    assert files(tmp_path) == []
    children = tmp_path / "fake-cc.children"
    for child in children.read_text().split() if children.exists() else ():
        assert has_ended(int(child))


def has_ended(pid: int) -> bool:
    """Or does so within 20 s."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)


def test_a_compiler_that_is_not_there(tmp_path: Path) -> None:
    _, which = library.load("auto", environ(tmp_path, CC="no-such-cc"))
    assert "CC is 'no-such-cc', which is not found" in which


def test_a_cache_that_cannot_be_made(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (library.cache_folder(environ(built)) / files(built)[0]).read_bytes()
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.write_bytes(whole))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded, which = library.load("native", environ(tmp_path / "file"))
    assert loaded is not None
    assert str(tmp_path / "tern-kernels-") in which
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_others_may_write_is_not_loaded(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.write_bytes(b"mine"))
    folder = tmp_path / "kernels"
    path, temporary = library.build(folder, environ(built))
    assert (path.parent, temporary) == (folder, False)
    path.write_bytes(b"theirs")
    path.chmod(0o666)
    again, _ = library.build(folder, environ(built))
    assert again.read_bytes() == b"mine"
    assert not again.stat().st_mode & stat.S_IWOTH
    folder.chmod(0o777)
    other, temporary = library.build(folder, environ(built))
    assert temporary
    assert other.parent != folder


@pytest.mark.parametrize("umask", [0o000, 0o002])
def test_a_generous_umask_does_not_cost_the_cache(
    umask: int, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Path] = []

    def compile_one(_: str, __: Sequence[str], ___: Sequence[Path], into: Path) -> None:
        compiled.append(into)
        into.touch(0o777)

    monkeypatch.setattr(library, "_compile", compile_one)
    folder, before = tmp_path / "missing" / "kernels", os.umask(umask)
    try:
        paths = [library.build(folder, environ(built)) for _ in range(2)]
    finally:
        os.umask(before)
    assert paths[0] == paths[1]
    assert len(compiled) == 1
    for path in (paths[0][0], folder, folder.parent):
        assert not path.stat().st_mode & 0o077


def test_a_folder_that_others_could_replace_is_not_trusted(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.write_bytes(b"x"))
    folder = tmp_path / "open" / "kernels"
    assert not library.build(folder, environ(built))[1]
    folder.parent.chmod(0o777)
    assert library.build(folder, environ(built))[1]
    folder.parent.chmod(0o1777)  # as /tmp: others cannot rename what is ours
    assert not library.build(folder, environ(built))[1]


def test_a_file_that_does_not_load_is_made_again(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that loses power leaves it, or as a folder that is mounted noexec has it."""
    whole = (library.cache_folder(environ(built)) / files(built)[0]).read_bytes()
    folder = library.cache_folder(environ(tmp_path))
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.touch())
    here, _ = library.build(folder, environ(tmp_path))
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.write_bytes(whole))
    loaded, which = library.load("native", environ(tmp_path))
    assert loaded is not None
    assert "tern-kernels-" in which
    assert not here.exists()
    assert library.build(folder, environ(tmp_path)) == (here, False)


def test_what_never_loads_leaves_torch(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_compile", lambda compiler, flags, sources, into: into.write_bytes(b"x"))
    loaded, which = library.load("auto", environ(tmp_path))
    assert loaded is None
    assert "cannot be loaded" in which
    with pytest.raises(StartupError, match=r"--cpu-kernels native: .+ cannot be loaded"):
        library.load("native", environ(tmp_path))


def test_torch_is_a_choice(tmp_path: Path) -> None:
    loaded, which = library.load("torch", environ(tmp_path))
    assert loaded is None
    assert "--cpu-kernels torch" in which
    assert list(tmp_path.iterdir()) == []


def test_its_threads_can_be_set_again_and_again(built: Path) -> None:
    loaded, _ = library.load("native", environ(built))
    assert loaded is not None
    for count in (4, 1, 3, 2, 8, 1):
        loaded.set_threads(count)
        assert loaded.threads() == count
    loaded.set_threads(0)
    assert loaded.threads() == 1
