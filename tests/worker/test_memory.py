"""What malloc does with the memory between two steps."""

import platform
import subprocess
import sys

import pytest

_FAULTS_OF_STEPS = """
import ctypes, resource
from worker import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if {keep}:
    memory.keep_freed()
else:  # as it is before a larger piece was freed
    libc.mallopt(-3, 128 << 10)
sizes = [8 << 20, 4 << 20, 12 << 20, 6 << 20]
def step():
    pieces = [libc.malloc(size) for size in sizes]
    for piece, size in zip(pieces, sizes):
        libc.memset(piece, 1, size)
    for piece in pieces:
        libc.free(piece)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    kept, given_back = _faults(keep=True), _faults(keep=False)
    assert kept < 10
    assert given_back > 2 * kept + 10, given_back  # 15 huge pages a step, or 7,680 small ones


def _faults(*, keep: bool) -> int:
    """Pages that three steps wait for, after a first."""
    code = _FAULTS_OF_STEPS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)
