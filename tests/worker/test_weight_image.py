"""Weights outlive the worker: the next one computes the same bits, and never from what does not fit."""

import hashlib
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from protocol.control import Keep, Phase, Ready
from protocol.errors import OutOfMemory
from protocol.sampling import SamplingParams
from scripts.process import drain
from tests.parity.families import FAMILIES, UNDECLARED
from tests.parity.reference import write_checkpoint
from tests.worker import native
from tests.worker.core import WorkerProcess
from tests.worker.driver import Driver, quiet, worker_config, write_config
from worker import runner
from worker.checkpoint import Checkpoint, TensorPart
from worker.kernels.combined_matrix import ReorderedMatrix, StackedMatrix, SumMatrix
from worker.kernels.matmul import Int4Part, pack_int4
from worker.kernels.native_matrices import NativeMatrices
from worker.kernels.native_matrix import NativeMatrix
from worker.runner import TorchRunner
from worker.weight_image import ALIGNMENT, WeightImage, fingerprint

TELLS = SamplingParams(temperature=0, logprobs=4)
PANELS = b"\xcd\x10\x00"
"""4,096 bytes, as msgpack writes it."""


class Supervisor:
    """Holds what a worker hands on."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.handed_on = 0

    def keep(self, descriptor: int) -> None:
        self.close()
        self.descriptor = os.dup(descriptor)
        self.handed_on += 1

    def hand_out(self) -> int:
        return os.dup(self.descriptor) if self.descriptor >= 0 else -1

    def open(self, sign: str) -> WeightImage:
        image = WeightImage.open(self.hand_out(), self.keep, sign, native.kernels())
        assert image is not None
        return image

    def start(self, model: Path, folder: Path, **options: object) -> TorchRunner:
        config = worker_config(model, folder, **options)  # type: ignore[arg-type]
        return TorchRunner(config, quiet, partial(WeightImage.open, self.hand_out(), self.keep))

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.close()


def answer(runner: TorchRunner) -> tuple[list[int], list[dict[int, float]]]:
    driver = Driver(runner)
    seq = driver.add([5, 9, 13, 17, 21, 25, 29], TELLS)
    driver.run([seq], 12, chunk=4)
    return seq.outputs, seq.logprobs


def found(runner: TorchRunner) -> bool:
    assert runner.image is not None
    return runner.image.found


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "nf4", "fp8"])
def test_the_next_worker_reads_no_matrix_and_computes_the_same(
    quantization: str, tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2 has biases, merged matrices and a tied head."""
    model = write_checkpoint(tmp_path / "model", "qwen2", tie_word_embeddings=True)
    options = {"quantization": quantization, "dtype": "bfloat16"}
    expected = answer(TorchRunner(worker_config(model, tmp_path, **options), quiet))  # type: ignore[arg-type]
    first = supervisor.start(model, tmp_path, **options)
    assert answer(first) == expected
    read: list[str] = []

    def noted(checkpoint: Checkpoint, part: TensorPart) -> Tensor:
        read.append(part.name)
        return plainly(checkpoint, part)

    plainly = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", noted)
    second = supervisor.start(model, tmp_path, **options)
    assert answer(second) == expected
    assert (found(first), found(second), supervisor.handed_on) == (False, True, 1)
    assert read
    assert all("norm" in name or "embed" in name for name in read), read
    assert second.facts == first.facts


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_finds_its_matrices(family: str, tmp_path: Path, supervisor: Supervisor) -> None:
    """Fused, transposed, of experts: each under a name of its own."""
    model_type, changes = FAMILIES[family]
    model = write_checkpoint(tmp_path / "model", model_type, **changes)
    expected = answer(supervisor.start(model, tmp_path))
    again = supervisor.start(model, tmp_path)
    assert found(again)
    assert answer(again) == expected


def test_matrices_in_transformers_code_are_found(tmp_path: Path, supervisor: Supervisor) -> None:
    """Of linear layers, of experts, and of a tied head."""
    model_type, changes = UNDECLARED["qwen2_moe"]
    model = write_checkpoint(tmp_path / "model", model_type, tie_word_embeddings=True, **changes)
    expected = answer(supervisor.start(model, tmp_path, quantization="int4"))
    again = supervisor.start(model, tmp_path, quantization="int4")
    assert found(again)
    assert answer(again) == expected


def test_matrices_of_matrices_come_back(supervisor: Supervisor) -> None:
    """As GPTQ makes them: columns in another order, eight bits as two times four, and rows of both kinds."""
    generator = torch.Generator().manual_seed(3)

    def int4(image: WeightImage) -> NativeMatrix:
        codes = torch.randint(0, 16, (40, 96), dtype=torch.uint8, generator=generator)
        scales, zeros = torch.rand(40, 3, generator=generator), torch.full((40, 3), 7.0)
        make = NativeMatrices(native.kernels(), image.allocate)
        return make.int4([Int4Part(pack_int4(codes), scales, zeros)], None, columns=96, group=32)

    filled = supervisor.open("one")
    order = torch.randperm(96, generator=generator)
    dense = NativeMatrices(native.kernels(), filled.allocate).dense([torch.rand(7, 96)], torch.rand(7))
    given = StackedMatrix([ReorderedMatrix(SumMatrix(int4(filled), int4(filled)), order), dense])
    x = torch.rand(3, 96, generator=generator)
    expected = given.multiply(x)
    assert torch.equal(filled.put("q_proj k_proj", given).multiply(x), expected)
    filled.finish()
    again = supervisor.open("one")
    assert again.found
    assert torch.equal(again.matrix("q_proj k_proj").multiply(x), expected)


def filled_once(supervisor: Supervisor) -> NativeMatrix:
    image = supervisor.open("one")
    matrix = image.put(
        "m", NativeMatrices(native.kernels(), image.allocate).dense([torch.ones(32, 64)], None)
    )
    image.finish()
    assert isinstance(matrix, NativeMatrix)
    return matrix


def access(tensor: Tensor) -> str:
    """What this process may do with the tensor's page: "r--s"."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.split()[1]
    raise AssertionError("it is not mapped")


def test_what_is_complete_cannot_be_written_to(supervisor: Supervisor) -> None:
    first = filled_once(supervisor)
    second = supervisor.open("one").matrix("m")
    assert isinstance(second, NativeMatrix)
    for matrix in (first, second):
        assert matrix.weights.panels is not None
        assert access(matrix.weights.panels)[:2] == "r-"
    with pytest.raises(PermissionError):
        os.pwrite(supervisor.descriptor, b"x", ALIGNMENT)


def test_other_files_options_or_kernels_are_seen_and_the_old_memory_is_given_back(
    supervisor: Supervisor, capfd: pytest.CaptureFixture[str]
) -> None:
    filled_once(supervisor)
    old = os.dup(supervisor.descriptor)
    image = supervisor.open("another")
    assert not image.found
    assert "files, options or kernels have changed" in capfd.readouterr().err
    assert os.fstat(old).st_blocks == 0
    os.close(old)


def test_the_fingerprint_tells_checkpoints_apart(tmp_path: Path, supervisor: Supervisor) -> None:
    """Also one that only replaces another of the same sizes; and it tells options."""
    model = write_checkpoint(tmp_path / "model", "llama")
    for options, expected in (({}, False), ({}, True), ({"quantization": "int8"}, False)):
        assert found(supervisor.start(model, tmp_path, **options)) == expected
    again = write_checkpoint(tmp_path / "again", "llama")
    os.replace(again / "model.safetensors", model / "model.safetensors")
    assert not found(supervisor.start(model, tmp_path, quantization="int8"))
    assert fingerprint("a", 1) != fingerprint("a", 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: ALIGNMENT - 1],
        lambda data: bytes(ALIGNMENT) + data[ALIGNMENT:],
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:16] + (1 << 60).to_bytes(8, "little") + data[24:],
        lambda data: with_manifest(data, b"U8", b"U9"),
        lambda data: with_manifest(data, PANELS, b"\xcd\x20\x00"),
    ],
    ids=["short", "no header", "cut", "other manifest", "far", "unknown type", "out of the file"],
)
def test_what_is_damaged_is_refused_and_made_again(
    damage: Callable[[bytes], bytes], supervisor: Supervisor, capfd: pytest.CaptureFixture[str]
) -> None:
    image = supervisor.open("one")
    weight = torch.ones(32, 32)
    image.put("m", NativeMatrices(native.kernels()).dense([weight], None))
    image.finish()
    whole = os.pread(supervisor.descriptor, 1 << 20, 0)
    damaged = damage(whole)
    assert damaged != whole
    supervisor.close()
    supervisor.descriptor = os.memfd_create("damaged")
    os.write(supervisor.descriptor, damaged)
    assert not supervisor.open("one").found
    assert "is not used: it is" in capfd.readouterr().err
    filled_once(supervisor)
    assert supervisor.open("one").found


def with_manifest(data: bytes, old: bytes, new: bytes) -> bytes:
    """With another manifest, and a header that fits it."""
    begin = int.from_bytes(data[16:24], "little")
    manifest = data[begin:].replace(old, new)
    return data[:32] + hashlib.sha256(manifest).digest() + data[ALIGNMENT:begin] + manifest


def test_memory_that_was_taken_before_counts_as_available(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a model of half of the memory could be started once, and not a second time."""
    model = write_config(tmp_path / "model")
    start = partial(
        supervisor.start, model, tmp_path, load_format="dummy", num_kv_blocks=20, max_model_len=40
    )
    left = start().facts.weights_bytes // 2
    monkeypatch.setattr(runner, "available_memory", lambda: left)
    assert found(start())
    with pytest.raises(OutOfMemory):
        start(seed=1)


def test_it_can_be_switched_off(tmp_path: Path, supervisor: Supervisor) -> None:
    model = write_config(tmp_path / "model")
    for options in ({"keep_weights": False}, {"cpu_kernels": "torch"}):
        assert supervisor.start(model, tmp_path, load_format="dummy", **options).image is None
    assert supervisor.handed_on == 0


def refuse(*_: object) -> int:
    raise OSError(38, "Function not implemented")


def test_what_cannot_be_mapped_is_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kernels, before = native.kernels(), os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse)
        opened = WeightImage.open(-1, os.close, "one", kernels)
    assert opened is None
    assert "not kept for the next worker: Function not implemented" in capfd.readouterr().err
    assert os.listdir("/proc/self/fd") == before


def test_without_anonymous_files_each_start_prepares_weights(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "memfd_create", refuse)
    model = write_config(tmp_path / "model")
    assert answer(supervisor.start(model, tmp_path, load_format="dummy"))
    assert "not kept for the next worker: Function not implemented" in capfd.readouterr().err


def test_a_worker_that_is_killed_while_it_loads_leaves_nothing(tmp_path: Path) -> None:
    """Everything it says comes before its end, so what did not come was not sent."""
    model = write_config(tmp_path / "model")
    config = worker_config(model, tmp_path, load_format="dummy")
    process = WorkerProcess(config, environ={"TERN_FAULTS": "kill:request=12"})
    try:
        assert process.wait()[0] == -signal.SIGKILL
        said, ended = drain(process.channel)
        assert ended
        assert Phase("loading weights", "12/15", 12 / 15) in said
        assert not [message for message in said if isinstance(message, Keep | Ready)]
        assert process.channel.take() == -1
    finally:
        process.close()
