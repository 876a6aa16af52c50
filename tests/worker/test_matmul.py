"""Every kind of matrix multiplies as its dequantized weights would, and a row's bits are its own.

The kernels run as this machine has them, and as built for lesser processors.
"""

import os
import platform
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from worker.kernels import matmul
from worker.kernels.cpu import library
from worker.kernels.cpu.library import Library
from worker.kernels.matmul import DenseMatrix, Matrix

LESSER = ("x86-64-v3", "x86-64") if platform.machine() == "x86_64" else ()
"""AVX2, and the path without any of the newer instructions."""
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the largest output: the types' rounding of it, and in float32 of sums in another order."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=["native", *LESSER])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    march = None if request.param == "native" else str(request.param)
    path, _ = library.build(tmp_path_factory.getbasetemp() / "kernels", os.environ, march)
    loaded = Library(path)
    loaded.set_threads(2)
    yield loaded
    loaded.set_threads(1)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_multiplies(matrix: Matrix, reference: Matrix, x: Tensor, dtype: torch.dtype | None = None) -> None:
    """With and without a sum to add to; each row alone gives the same bits."""
    wanted = dtype or x.dtype
    add = random(len(x), matrix.shape[0], dtype=wanted)
    for more in (None, add):
        y, expected = matrix.multiply(x, more, dtype), reference.multiply(x, more, dtype)
        assert (y.dtype, y.shape) == (wanted, expected.shape)
        error = (y.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error < TOLERANCE[wanted], f"{error} of the largest"
        for i in {0, len(x) // 2, len(x) - 1}:
            alone = matrix.multiply(x[i : i + 1], None if more is None else more[i : i + 1], dtype)
            assert torch.equal(alone[0], y[i]), f"row {i} of {len(x)}"


def dense(
    parts: list[Tensor], kernels: Library, bias: Tensor | None = None
) -> tuple[DenseMatrix, DenseMatrix]:
    return DenseMatrix(parts, bias=bias, kernels=kernels), DenseMatrix(parts, bias=bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 31), (130, 192), (7, 1024), (33, 2100)])
def test_dense(kernels: Library, dtype: torch.dtype, n: int, k: int) -> None:
    matrix, reference = dense([random(n, k, dtype=dtype)], kernels, random(n, dtype=dtype))
    for m in (1, 2, 3, 5, 6, 7, 16, 70):
        assert_multiplies(matrix, reference, random(m, k, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_rows_and_float32_results(kernels: Library, dtype: torch.dtype) -> None:
    matrix, reference = dense([random(140, 96, dtype=dtype)], kernels)
    assert_multiplies(matrix, reference, random(205, 96, dtype=dtype), torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_parts_and_strided_rows(kernels: Library, dtype: torch.dtype) -> None:
    """q, k and v where they lie: in the middle of wider rows, and at odd rows."""
    whole = random(60, 100, dtype=dtype)
    parts = [whole[3:10, 5:69], whole[20:33, 1:65], whole[59:60, :64]]
    matrix, reference = dense(parts, kernels)
    assert matrix.shape == (21, 64)
    x = random(9, 128, dtype=dtype)
    assert_multiplies(matrix, reference, x[:, 7:71])
    assert_multiplies(matrix, reference, x[::2, :64])
    assert_multiplies(matrix, reference, x.t()[:64, :5].t())


def test_threads_do_not_matter(kernels: Library) -> None:
    matrix, _ = dense([random(700, 512, dtype=torch.bfloat16)], kernels)
    for m in (1, 40, 300):
        x = random(m, 512, dtype=torch.bfloat16)
        kernels.set_threads(1)
        alone = matrix.multiply(x)
        for threads in (2, 3, 7):
            kernels.set_threads(threads)
            for _ in range(20):
                assert torch.equal(matrix.multiply(x), alone)
    kernels.set_threads(2)


def test_nothing_is_nothing(kernels: Library) -> None:
    matrix, _ = dense([random(8, 16)], kernels)
    assert matrix.multiply(random(0, 16)).shape == (0, 8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_rows_nan_stays_its_own(kernels: Library, dtype: torch.dtype, bad: float) -> None:
    matrix, _ = dense([random(20, 70, dtype=dtype)], kernels)
    x = random(9, 70, dtype=dtype)
    clean = matrix.multiply(x)
    x[4, 69] = bad
    y = matrix.multiply(x)
    assert not y[4].isfinite().any()
    assert torch.equal(y[:4], clean[:4])
    assert torch.equal(y[5:], clean[5:])


def test_nibbles_come_back() -> None:
    for columns in (1, 63, 64, 65, 192, 200):
        codes = torch.randint(0, 16, (5, columns), dtype=torch.uint8)
        packed = matmul.pack_int4(codes)
        assert packed.shape == (5, -(-columns // 64) * 32)
        assert torch.equal(matmul.unpack_int4(packed, columns), codes)


def test_rows_are_quantized_by_their_largest() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 4.0]])
    codes, scales = matmul.quantize_rows(x)
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0], [4.0]]) / 127)
    codes, scales = matmul.quantize_rows(x, 3)
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0, 0.0], [0.0, 4.0]]) / 127)
