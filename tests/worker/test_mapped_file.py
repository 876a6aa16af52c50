"""What is mapped: shared pages, errors instead of signals while loading, and a signal after it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.checkpoint import Checkpoint, TensorPart
from worker.mapped_file import MappedFile

WEIGHT = TensorPart("w", (1024, 512), (0, 0), (1024, 512), kept=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"w": torch.randn(1024, 512)}, tmp_path / "model.safetensors")
    return tmp_path


def private_bytes(address: int) -> tuple[int, int]:
    """(resident, of these not the file's) of the mapping at this address."""
    found = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= address < high
        elif inside:
            found[first] = int(rest.split()[0]) * 1024 if rest.strip().endswith("kB") else 0
    return found["Rss:"], found["Anonymous:"]


def test_pages_are_the_files_own(folder: Path) -> None:
    """So several workers share them, and a restarted one finds them."""
    weight = Checkpoint(folder).read(WEIGHT)
    resident, private = private_bytes(weight.data_ptr())
    assert resident >= weight.nbytes
    assert private == 0
    path = folder / "model.safetensors"
    before = path.read_bytes()
    weight[0] = 1.0  # what nobody does: it stays in this process
    assert path.read_bytes() == before


def test_a_copy_is_asked_for_by_name(folder: Path) -> None:
    weight = Checkpoint(folder, may_map=False).read(WEIGHT)
    assert private_bytes(weight.data_ptr())[1] > 0
    torch.testing.assert_close(weight, Checkpoint(folder).read(WEIGHT), atol=0, rtol=0)


def test_types_that_do_not_lie_on_their_boundary_are_copied(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}  '
    data = torch.tensor([1.0, 2.0, 3.0])
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + data.numpy().tobytes()
    )
    assert (8 + len(header)) % 4
    found = Checkpoint(tmp_path).read(TensorPart("w", (3,), (0,), (3,), kept=True))
    torch.testing.assert_close(found, data, atol=0, rtol=0)


def test_pages_that_are_gone_are_an_error_while_loading(folder: Path) -> None:
    mapped = MappedFile(folder / "model.safetensors")
    os.truncate(folder / "model.safetensors", 4096)
    with pytest.raises(OSError, match="has become shorter"):
        mapped.tensor(1 << 20, (16,), torch.float32)


def test_pages_that_go_later_end_the_process(folder: Path) -> None:
    """With a signal, which the supervisor reports: never zeros instead of weights."""
    program = (
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from worker.mapped_file import MappedFile\n"
        "path = Path(sys.argv[1])\n"
        "weight = MappedFile(path).tensor(1 << 20, (16,), torch.float32)\n"
        "os.truncate(path, 4096)\n"
        "print(weight.sum())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder / "model.safetensors")], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, b"")
