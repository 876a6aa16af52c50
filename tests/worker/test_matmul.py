"""Every kind of matrix multiplies as its dequantized weights would, and a row's bits are its own.

The kernels run as this machine has them, and as built for lesser processors.
"""

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.worker import native
from tests.worker.native import LESSER, built
from worker.kernels import matmul
from worker.kernels.cpu import library
from worker.kernels.cpu.library import Library
from worker.kernels.matmul import (
    DenseMatrix,
    FP8Part,
    Int4Part,
    Int8Part,
    Matrix,
    NF4Part,
)
from worker.kernels.matrices import Matrices, TorchMatrices
from worker.kernels.native_matrices import NativeMatrices
from worker.kernels.native_matrix import NativeMatrix

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the largest output: the types' rounding of it, and in float32 of sums in another order."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=["native", *LESSER])
def kernels(request: pytest.FixtureRequest) -> Iterator[Library]:
    loaded = built(None if request.param == "native" else str(request.param))
    loaded.set_threads(2)
    yield loaded
    loaded.set_threads(1)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_multiplies(matrix: Matrix, reference: Matrix, x: Tensor, dtype: torch.dtype | None = None) -> None:
    """With and without a sum to add to; each row alone gives the same bits."""
    wanted = dtype or x.dtype
    tolerance = max(TOLERANCE[wanted], TOLERANCE[x.dtype])  # converted weights take the type of x
    add = random(len(x), matrix.shape[0], dtype=wanted)
    for more in (None, add):
        y, expected = matrix.multiply(x, more, dtype), reference.multiply(x, more, dtype)
        assert (y.dtype, y.shape) == (wanted, expected.shape)
        error = (y.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error < tolerance, f"{error} of the largest"
        for i in {0, len(x) // 2, len(x) - 1}:
            alone = matrix.multiply(x[i : i + 1], None if more is None else more[i : i + 1], dtype)
            assert torch.equal(alone[0], y[i]), f"row {i} of {len(x)}"


def dense(parts: list[Tensor], kernels: Library, bias: Tensor | None = None) -> tuple[Matrix, Matrix]:
    return NativeMatrices(kernels).dense(parts, bias), DenseMatrix(parts, bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (130, 192), (33, 1100)])
def test_dense(kernels: Library, dtype: torch.dtype, n: int, k: int) -> None:
    matrix, reference = dense([random(n, k, dtype=dtype)], kernels, random(n, dtype=dtype))
    for m in (1, 3, 7, 16, 70):
        assert_multiplies(matrix, reference, random(m, k, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(205, 140, 96), (97, 44, 1350), (108, 33, 2050), (1700, 32, 33)])
def test_many_rows_and_float32_results(kernels: Library, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    matrix, reference = dense([random(n, k + 8, dtype=dtype)[:, 3:-5]], kernels)
    assert_multiplies(matrix, reference, random(m, k, dtype=dtype), torch.float32)


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


def coded_and_not(parts: list[Tensor], kernels: Library) -> tuple[NativeMatrix, NativeMatrix]:
    """The first is, where the processor can and it is smaller."""
    coded = NativeMatrices(kernels).dense(parts, None)
    kernels.codes = False
    plain = NativeMatrices(kernels).dense(parts, None)
    kernels.codes = True
    return coded, plain


def num_bytes(matrix: NativeMatrix) -> int:
    assert matrix.weights.panels is not None
    return matrix.weights.panels.numel()


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w,
    "zeros": lambda w: w * (random(*w.shape) > 0.3),
    "rows of zeros": lambda w: w * (torch.arange(len(w)) % 3 > 0)[:, None],
    "few exponents too many": lambda w: (
        w * torch.exp2((torch.arange(w.numel()) % 1500 == 7).view(w.shape) * 30.0)
    ),
    "subnormal": lambda w: w * 1e-38,
    "every exponent": lambda w: w * torch.exp2(torch.arange(w.numel()).view(w.shape) % 250 - 127.0),
    "infinite": lambda w: torch.where(torch.arange(w.shape[1]) == 40, torch.inf, w),
}


@pytest.mark.parametrize("odd", ODD)
def test_coded_exponents_change_no_bit(kernels: Library, odd: str) -> None:
    weight = ODD[odd](random(150, 1056)).bfloat16()
    coded, plain = coded_and_not([weight[:7], weight[7:80, :], weight[80:]], kernels)
    for m in (1, 2, 5, 12, 13, 16, 17, 40):
        x = random(m, 1056, dtype=torch.bfloat16)
        assert torch.equal(coded.multiply(x).view(torch.int16), plain.multiply(x).view(torch.int16)), m


@pytest.mark.parametrize("kernels", ["native"], indirect=True)
def test_coded_exponents_save_a_quarter(kernels: Library) -> None:
    weight = random(1024, 1024, dtype=torch.bfloat16)
    coded, plain = coded_and_not([weight], kernels)
    can = "avx512_bf16" in library._cpu_flags()
    assert num_bytes(coded) < (0.77 if can else 1.01) * num_bytes(plain)
    for unfit in (weight[:, :1000], weight.float(), weight.half()):
        coded, plain = coded_and_not([unfit], kernels)
        assert num_bytes(coded) == num_bytes(plain)


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


def codes(n: int, k: int, below: int) -> Tensor:
    generator = torch.Generator().manual_seed(n + k)
    return torch.randint(0, below, (n, k), dtype=torch.uint8, generator=generator)


def int8_part(n: int, k: int) -> Int8Part:
    return Int8Part((codes(n, k, 255).int() - 127).to(torch.int8), random(n).abs() / 100)


def int4_part(n: int, k: int, group: int, zeros: bool, scales: torch.dtype = torch.float32) -> Int4Part:
    groups = -(-k // group)
    zero = codes(n, groups, 16).float() if zeros else None
    return Int4Part(matmul.pack_int4(codes(n, k, 16)), (random(n, groups).abs() / 10).to(scales), zero)


def nf4_part(n: int, k: int, group: int) -> NF4Part:
    return NF4Part(matmul.pack_nf4(codes(n, k, 16)), random(n, -(-k // group)).abs())


def fp8_part(n: int, k: int, block: tuple[int, int]) -> FP8Part:
    scales = random(-(-n // block[0]), -(-k // block[1])).abs()
    return FP8Part(random(n, k).to(torch.float8_e4m3fn), scales, block)


def quantized(kind: str, sizes: list[int], k: int, kernels: Library | None) -> Matrix:
    """Of parts with so many rows; None: the reference."""
    bias = random(sum(sizes))
    group = {"32": 32, "64": 64, "128": 128, "row": k}.get(kind.split()[-1], 0)
    make: Matrices = TorchMatrices() if kernels is None else NativeMatrices(kernels)
    match kind.split()[0]:
        case "w8a8" | "w8a16":
            parts = [int8_part(n, k) for n in sizes]
            return make.int8(parts, bias, quantize_input=kind == "w8a8")
        case "int4" | "zeros" | "short":
            scales = torch.bfloat16 if kind.startswith("short") else torch.float32
            fours = [int4_part(n, k, group, kind.startswith("zeros"), scales) for n in sizes]
            return make.int4(fours, bias, columns=k, group=group)
        case "nf4":
            return make.nf4([nf4_part(n, k, group) for n in sizes], bias, columns=k, group=group)
        case _:

            def block(n: int) -> tuple[int, int]:
                return {"tensor": (n, k), "channel": (1, k), "blocks": (128, 128)}[kind.split()[1]]

            return make.fp8([fp8_part(n, k, block(n)) for n in sizes], bias, quantize_input=False)


KINDS = (
    "w8a8",
    "w8a16",
    "int4 32",
    "short 32",
    "short 128",
    "int4 128",
    "int4 row",
    "zeros 32",
    "zeros 64",
    "zeros row",
    "nf4 64",
    "nf4 row",
)
FP8_KINDS = ("fp8 tensor", "fp8 channel", "fp8 blocks")


@pytest.mark.parametrize("kind", [*KINDS, *FP8_KINDS])
def test_quantized(kernels: Library, kind: str) -> None:
    for sizes, k in (([37], 100), ([16, 5, 20], 1312)):
        matrix, reference = quantized(kind, sizes, k, kernels), quantized(kind, sizes, k, None)
        assert matrix.shape == (sum(sizes), k)
        for dtype, m in zip(FLOATS, (1, 7, 70), strict=True):
            assert_multiplies(matrix, reference, random(m, k, dtype=dtype))
    for m, dtype in ((19, torch.bfloat16), (100, torch.float32), (110, torch.bfloat16), (100, torch.float16)):
        assert_multiplies(matrix, reference, random(m, k + 6, dtype=dtype)[:, 3:-3], torch.float32)


@pytest.mark.parametrize("kind", ["w8a8", "zeros 32", "nf4 64", "fp8 blocks"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_quantized_keeps_nan_apart(kernels: Library, kind: str, bad: float) -> None:
    matrix = quantized(kind, [20], 96, kernels)
    x = random(9, 96)
    clean = matrix.multiply(x)
    x[4, 95] = bad
    y = matrix.multiply(x)
    assert not y[4].isfinite().all()
    assert torch.equal(y[:4], clean[:4])
    assert torch.equal(y[5:], clean[5:])


@pytest.mark.parametrize("kind", ["w8a8", "zeros 32", "fp8 blocks"])
def test_quantized_by_any_number_of_threads(kernels: Library, kind: str) -> None:
    matrix = quantized(kind, [300, 77], 256, kernels)
    for m in (1, 130):
        x = random(m, 256, dtype=torch.bfloat16)
        kernels.set_threads(1)
        alone = matrix.multiply(x)
        kernels.set_threads(3)
        for _ in range(10):
            assert torch.equal(matrix.multiply(x), alone)
    kernels.set_threads(2)


def test_int4_scales_are_in_memory_once() -> None:
    """By block of rows, as the kernels read them: one in 32 columns is a fifth of the matrix."""
    part = int4_part(40, 512, 32, zeros=True)
    assert part.zeros is not None
    given = [weakref.ref(part.scales), weakref.ref(part.zeros)]
    matrix = NativeMatrices(native.kernels()).int4([part], None, columns=512, group=32)
    del part
    assert [tensor() for tensor in given] == [None, None]
    assert matrix.multiply(random(1, 512)).isfinite().all()


def test_every_fp8_number() -> None:
    """Also the subnormal ones; NaN stays NaN."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(256, 1)
    part = FP8Part(every, torch.ones(1, 1), (256, 1))
    matrix = NativeMatrices(native.kernels()).fp8([part], None, quantize_input=False)
    y = matrix.multiply(torch.ones(1, 1))
    torch.testing.assert_close(y[0], every.float().view(-1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 63), (16, 64), (17, 65), (40, 200)])
def test_nibbles_come_back(rows: int, columns: int) -> None:
    of_four = codes(rows, columns, 16)
    packed = matmul.pack_int4(of_four)
    assert packed.shape == (-(-rows // 16), -(-columns // 8) * 64)
    assert torch.equal(matmul.unpack_int4(packed, rows, columns), of_four)


def test_rows_are_quantized_by_their_largest() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 4.0]])
    codes, scales = matmul.quantize_rows(x)
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0], [4.0]]) / 127)
    codes, scales = matmul.quantize_rows(x, 3)
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 0, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0, 0.0], [0.0, 4.0]]) / 127)
    codes, _ = matmul.quantize_rows(torch.tensor([[1e-38, 0.0]]))
    assert codes.tolist() == [[0, 0]], "the inverse of its scale would be infinite"
