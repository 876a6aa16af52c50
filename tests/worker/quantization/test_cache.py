"""Rounded weights on disk: the same numbers, no second rounding, and nothing that is damaged is used."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import StartupError
from tests.parity.reference import write_checkpoint
from tests.worker.driver import quiet, worker_config
from tests.worker.quantization.checkpoints import logprobs
from worker.parallel import Group
from worker.quantization import cache, rounding
from worker.quantization.cache import Cache
from worker.runner import TorchRunner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", intermediate_size=128)


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache").iterdir())


def answer(folder: Path, scheme: str) -> torch.Tensor:
    return logprobs(
        folder, folder.parent, quantization=scheme, quantization_cache=str(folder.parent / "cache")
    )


def no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("rounded again")

    monkeypatch.setattr(rounding.Rounded, "load", fail)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4", "nf4"])
def test_the_second_start_rounds_nothing(scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer(folder, scheme)
    assert torch.equal(first, logprobs(folder, folder.parent, quantization=scheme))
    (path,) = kept(folder)
    no_rounding(monkeypatch)
    assert torch.equal(first, answer(folder, scheme))
    assert kept(folder) == [path]


def test_every_way_has_its_own(folder: Path) -> None:
    """The scheme, the head, the data of the checkpoint, and the rank."""

    def start(**options: Any) -> None:
        where = str(folder.parent / "cache")
        config = worker_config(folder, folder.parent, quantization_cache=where, **options)
        TorchRunner(config, quiet)

    start(quantization="int8")
    start(quantization="nf4")
    start(quantization="int8", quantize_head=False)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    start(quantization="int8")
    assert len(kept(folder)) == 4
    second = Group()
    second.rank, second.size = 1, 2
    paths = {Cache(folder.parent / "cache", "x", [], group).path for group in (Group(), second)}
    assert len(paths) == 2


@pytest.mark.parametrize("left", [0, 99, 20_000])
def test_truncated_files_are_made_again(
    left: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = answer(folder, "int4")
    (path,) = kept(folder)
    assert path.stat().st_size > left
    os.truncate(path, left)
    assert torch.equal(first, answer(folder, "int4"))
    assert "is made again" in capsys.readouterr().err
    no_rounding(monkeypatch)
    assert torch.equal(first, answer(folder, "int4"))


def test_a_full_disk_costs_the_cache_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._Writer, "append", full)
    assert torch.equal(answer(folder, "int8"), logprobs(folder, folder.parent, quantization="int8"))
    assert "is not written: No space left on device" in capsys.readouterr().err
    assert kept(folder) == []


def test_what_killed_writers_left_is_deleted(folder: Path) -> None:
    """Up to the size of the model each time; but not what somebody still writes."""
    answer(folder, "int8")
    (path,) = kept(folder)
    path.unlink()
    left, held = (path.with_name(f".writing-{path.stem}-{who}") for who in ("killed", "alive"))
    left.touch()
    with held.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer(folder, "int8")
        assert kept(folder) == [held, path]


def test_bad_options_are_refused(folder: Path) -> None:
    with pytest.raises(StartupError, match="--quantization-cache keeps what --quantization rounds"):
        answer(folder, "none")
    (folder.parent / "cache").write_text("a file")
    with pytest.raises(StartupError, match=r"--quantization-cache '.*cache': File exists"):
        answer(folder, "int8")
