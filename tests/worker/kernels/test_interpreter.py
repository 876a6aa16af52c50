"""The tests beside their kernels in `triton/`, in a process of their own under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 900
"""A minute alone on the machine."""


@pytest.mark.long
@pytest.mark.timeout(DEADLINE_S)
def test_kernels_equal_their_references_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "tests/worker/kernels/triton", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"  # 5 if there were none
