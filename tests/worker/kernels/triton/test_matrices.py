"""What a checkpoint's parts become on the device, against their dequantized numbers."""

import pytest
import torch
from torch import Tensor

from protocol.errors import StartupError
from tests.worker.kernels.triton.tolerance import close
from worker.kernels import activation as torch_activation
from worker.kernels.activation import Activation
from worker.kernels.combined_matrix import StackedMatrix
from worker.kernels.matmul import FP8Part, Matrix, dequantize_fp8, dequantize_int4, quantize_rows
from worker.kernels.triton.device import TritonKernels
from worker.kernels.triton.matrices import MANY_ROWS, TritonMatrices
from worker.kernels.triton.norm import reference as norm_reference
from worker.kernels.triton.quantize_rows import reference as quantized_reference
from worker.quantization.rounding import INT4_GROUP, round_fp8, round_int4, round_int8

ROWS, K = (24, 40), 96


@pytest.fixture(params=[False, True], ids=["fast", "invariant"])
def matrices(request: pytest.FixtureRequest, device: torch.device) -> TritonMatrices:
    return TritonMatrices(device, invariant=request.param)


def parts() -> list[Tensor]:
    return [torch.randn(n, K) / 10 for n in ROWS]


def check(matrix: Matrix, weight: Tensor, bias: Tensor | None, x: Tensor, device: torch.device) -> None:
    """With a summand, and in another type."""
    assert matrix.shape == weight.shape
    add = torch.randn(len(x), len(weight))
    expected = x.double() @ weight.double().t() + add
    expected = expected if bias is None else expected + bias
    close(matrix.multiply(x.to(device), add.to(device)).cpu(), expected.float())
    y = matrix.multiply(x.half().to(device), None, torch.float32) if x.shape[0] == 1 else None
    assert y is None or y.dtype == torch.float32


@pytest.mark.parametrize("count", [3, MANY_ROWS + 1])
def test_dense(count: int, matrices: TritonMatrices, device: torch.device) -> None:
    given, bias = parts(), torch.randn(sum(ROWS))
    for its_bias in (bias, None):
        check(matrices.dense(given, its_bias), torch.cat(given), its_bias, torch.randn(count, K), device)


def test_what_is_placed_is_there_once(device: torch.device) -> None:
    matrices, weight = TritonMatrices(device, invariant=False), torch.randn(4, 32)
    placed = matrices.place(weight)
    head = matrices.dense([weight], None)
    assert head.weight.data_ptr() == placed.data_ptr()  # type: ignore[attr-defined]


@pytest.mark.parametrize("quantize_input", [False, True])
def test_int8(quantize_input: bool, matrices: TritonMatrices, device: torch.device) -> None:
    rounded = [round_int8(part) for part in parts()]
    weight = torch.cat([p.weight.float() * p.scales[:, None] for p in rounded])
    x = torch.randn(3, K)
    if quantize_input:  # numbers that rounding leaves as they are
        codes, scales = quantize_rows(x)
        x = codes * scales
    check(matrices.int8(rounded, None, quantize_input=quantize_input), weight, None, x, device)


@pytest.mark.parametrize("zeros", [False, True])
def test_int4(zeros: bool, matrices: TritonMatrices, device: torch.device) -> None:
    rounded = [round_int4(part) for part in parts()]
    if zeros:
        other = torch.randint(0, 16, rounded[1].scales.shape).float()
        rounded[1] = type(rounded[1])(rounded[1].packed, rounded[1].scales, other)
    weight = torch.cat([dequantize_int4(part, K, INT4_GROUP) for part in rounded])
    bias = torch.randn(sum(ROWS))
    matrix = matrices.int4(rounded, bias, columns=K, group=INT4_GROUP)
    check(matrix, weight, bias, torch.randn(3, K), device)


@pytest.mark.parametrize("count", [1, 3])
def test_fp8_of_rows_and_of_whole_parts(count: int, matrices: TritonMatrices, device: torch.device) -> None:
    _fp8_serves(device)
    rounded = [
        round_fp8(parts()[0]),
        FP8Part(parts()[1].to(torch.float8_e4m3fn), torch.tensor([[0.5]]), (40, K)),
    ]
    weight = torch.cat([dequantize_fp8(part) for part in rounded])
    matrix = matrices.fp8(rounded, None, quantize_input=True)
    check(matrix, weight, None, torch.randn(count, K), device)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("quantize_input", [False, True])
def test_many_rows_are_rounded_to_fp8_where_the_checkpoint_allows_it(
    quantize_input: bool, blocks: bool, matrices: TritonMatrices, device: torch.device
) -> None:
    _fp8_serves(device)
    part = round_fp8(torch.randn(40, 200) / 10)
    if blocks:
        part = FP8Part(part.weight, torch.rand(1, 2) + 0.5, (128, 128))
    weight, x = dequantize_fp8(part), torch.randn(MANY_ROWS + 1, 200).half().float()
    codes, scales = quantized_reference(x, torch.float8_e4m3fn, 128 if blocks else None)
    rounded = codes.float() * scales.repeat_interleave(128 if blocks else 200, 1)[:, :200]
    matrix = matrices.fp8([part], None, quantize_input=quantize_input)
    found = matrix.multiply(x.half().to(device)).cpu()
    is_rounded = quantize_input and not matrices.invariant
    right, wrong = (rounded, x) if is_rounded else (x, rounded)
    close(found, (right @ weight.t()).half(), 2)
    assert not torch.allclose(found.float(), wrong @ weight.t(), atol=1e-2)


def test_fp8_of_blocks(matrices: TritonMatrices, device: torch.device) -> None:
    """Parts that end within a block are multiplied apart; blocks of other sizes are refused by name."""
    _fp8_serves(device)

    def part(rows: int, block: tuple[int, int] = (128, 128)) -> FP8Part:
        scales = torch.rand(-(-rows // block[0]), -(-256 // block[1])) + 0.5
        return FP8Part((torch.randn(rows, 256) / 10).to(torch.float8_e4m3fn), scales, block)

    for lengths, kind in (((128, 40), None), ((40, 128), StackedMatrix)):
        given = [part(rows) for rows in lengths]
        matrix = matrices.fp8(given, None, quantize_input=False)
        assert isinstance(matrix, StackedMatrix) == (kind is StackedMatrix)
        weight = torch.cat([dequantize_fp8(one) for one in given])
        for count in (1, 2):
            check(matrix, weight, None, torch.randn(count, 256), device)
    with pytest.raises(StartupError, match="64 × 128 have no kernel for GPUs"):
        matrices.fp8([part(128, (64, 128))], None, quantize_input=False)


def _fp8_serves(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "gated", [torch_activation.silu_and_multiply, torch_activation.gelu_tanh_and_multiply]
)
@pytest.mark.parametrize("centred", [False, True], ids=["RMSNorm", "LayerNorm"])
def test_projections(count: int, gated: Activation, *, centred: bool, device: torch.device) -> None:
    """Norm, product and activation, in one kernel or in three."""
    kernels = TritonKernels(device)
    rounded = [round_int8(torch.randn(32, K) / 10) for _ in range(2)]
    weight = torch.cat([p.weight.float() * p.scales[:, None] for p in rounded])
    x, scale, bias = torch.randn(count, K), torch.randn(K), torch.randn(64)
    shift = torch.randn(K) if centred else None
    normed = norm_reference(x, scale, 1e-5, bias=shift)
    there = (scale.to(device), None if shift is None else shift.to(device))
    norm = kernels.norm(*there, 1e-5)
    matrix = kernels.matrices.int8(rounded, bias, quantize_input=False)
    expected = gated(normed @ weight.t() + bias)
    close(kernels.project(x.to(device), matrix, norm, kernels.activation(gated)).cpu(), expected)
    plain = kernels.project(x.to(device), matrix, None)
    close(plain.cpu(), x @ weight.t() + bias)
