"""What the tests of the C kernels say of this machine's own build holds of others: lesser processors, clang.

Cases of those tests are called here. test_matmul.py itself runs for the lesser processors.
"""

import shutil

import pytest
import torch

from tests.worker import (
    test_lora_product,
    test_matmul,
    test_native_attention,
    test_rows,
    test_sampling_kernels,
)
from tests.worker.native import LESSER, built
from worker.kernels import activation
from worker.kernels.cpu.library import Library

NO_CLANG = pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
CLANG = [pytest.param(("clang", march), marks=NO_CLANG) for march in (None, *LESSER[-1:])]


@pytest.fixture(scope="module", params=[*((None, march) for march in LESSER), *CLANG])
def build(request: pytest.FixtureRequest) -> Library:
    compiler, march = request.param
    return built(march, compiler)


@pytest.fixture(scope="module", params=CLANG)
def clang(request: pytest.FixtureRequest) -> Library:
    compiler, march = request.param
    return built(march, compiler)


@pytest.mark.parametrize("dtype", test_matmul.FLOATS)
def test_attention(build: Library, dtype: torch.dtype) -> None:
    test_native_attention.test_as_the_reference(build, dtype, dim=80, heads=7, kv_heads=1)
    test_native_attention.test_fused_is_norms_then_rotation_then_write_then_attention(
        build, dtype, dim=64, rotary_dim=64, norms=True
    )


def test_the_same_bits_soft_caps_sinks_and_nan(build: Library) -> None:
    test_native_attention.test_only_its_own_sequence_decides_a_bit(build, torch.bfloat16, 40, 4, 2, 64, None)
    test_native_attention.test_int8_caches_as_the_reference(build, torch.bfloat16, 12, 80, 48, 16)
    test_native_attention.test_soft_cap_and_sinks(build, torch.bfloat16)
    test_native_attention.test_a_sick_sequence_stays_sick(build, torch.bfloat16, torch.int8, "values")
    test_rows.test_nan_stays_nan(build)


@pytest.mark.parametrize("dtype", test_matmul.FLOATS)
def test_norms_and_activations(build: Library, dtype: torch.dtype) -> None:
    test_rows.test_norms(build, dtype, rows=130, size=100)
    for function in (activation.silu_and_multiply, activation.gelu_tanh):
        test_rows.test_activations(build, dtype, 97, function)


@pytest.mark.parametrize("dtype", test_matmul.FLOATS)
def test_adapters(build: Library, dtype: torch.dtype) -> None:
    test_lora_product.test_each_row_has_its_own(build, dtype, [33, 7, 600], 100)


def test_sampling(build: Library) -> None:
    test_sampling_kernels.test_the_first_of_the_likeliest_and_what_is_not_finite(build, 2051)
    test_sampling_kernels.test_draws(build, (40, 0.5, 0.2), spread=1.0)


@pytest.mark.parametrize("dtype", test_matmul.FLOATS)
def test_dense_matrices(clang: Library, dtype: torch.dtype) -> None:
    test_matmul.test_dense(clang, dtype, n=33, k=1100)
    test_matmul.test_many_rows_and_float32_results(clang, dtype, m=108, n=33, k=2050)


@pytest.mark.parametrize("kind", [*test_matmul.KINDS, *test_matmul.FP8_KINDS])
def test_quantized_matrices(clang: Library, kind: str) -> None:
    test_matmul.test_quantized(clang, kind)
