"""Kernels run here under Triton's interpreter on CPU tensors, or compiled on a GPU; else nothing runs here.

Triton decides for a whole process, when it is imported, so a process has to be started for it:
`TRITON_INTERPRET=1 pytest tests/worker/kernels/triton`. The suite does so in ../test_interpreter.py.
The interpreter computes bfloat16 wrong without a word, so it is given float32 and float16 only. It rounds to
float8 wrong, too (a carry into the exponent is lost: 31.6 becomes 16), so torch does that for it.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def _torch_rounds_to_float8() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float

    def convert(numbers: Any, dtype: Any, to: Any, rounding: Any) -> Any:
        if to != tl.float8e4nv or dtype not in (tl.float32, tl.float16):
            return original(numbers, dtype, to, rounding)
        rounded = torch.from_numpy(np.ascontiguousarray(numbers)).to(torch.float8_e4m3fn)
        return rounded.view(torch.uint8).numpy()

    interpreter._convert_float = convert


def _fewer_programs() -> None:
    """Where each takes a millisecond, and nothing has to be kept busy."""
    from worker.kernels.triton import gemv

    gemv.ENOUGH = 1


if INTERPRETED:
    _torch_rounds_to_float8()
    _fewer_programs()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if not INTERPRETED and str(item.path).startswith(here):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def limits_are_quiet() -> Iterator[None]:
    """Numpy, which interprets, warns of what a device does in silence: exp(1000) is inf, inf - inf is NaN."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def device() -> torch.device:
    torch.manual_seed(0)
    return torch.device("cpu" if INTERPRETED else "cuda")


DTYPES = ["float32", "float16"] if INTERPRETED else ["float32", "float16", "bfloat16"]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found = getattr(torch, request.param)
    assert isinstance(found, torch.dtype)
    return found
